"""Recurrent layers over sequences with lengths, and cells for one step.

Parameters are in ONNX's gate order (GRU: z, r, h; LSTM: i, o, f, c), so an exported graph contains them unchanged.

GRU (Cho et al. 2014, https://arxiv.org/abs/1406.1078; reset after the product, as in cuDNN and torch):

    z = sigmoid(W_z x + R_z h + b_z),  r = sigmoid(W_r x + R_r h + b_r)
    n = tanh(W_h x + b_h + r * (R_h h + b'_h)),  h' = (1 - z) * n + z * h

LSTM (Hochreiter and Schmidhuber 1997, with a forget gate):

    i, o, f = sigmoid(W x + R h + b),  g = tanh(W_c x + R_c h + b_c),  c' = f * c + i * g,  h' = o * tanh(c')
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from edge_attn.models.interface import State
from edge_attn.models.layers import torch_ops

GATES = {"gru": 3, "lstm": 4}


def glorot(*shape: int, gates: int) -> nn.Parameter:
    """Return a parameter (..., gates * hidden, size), each gate with the uniform bound of Glorot and Bengio (2010)."""
    bound = math.sqrt(6.0 / (shape[-2] // gates + shape[-1]))
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class RecurrentLayer(nn.Module):
    """One bidirectional layer; `cell` is gru or lstm.

    Shapes:
        x (batch, src, size), lengths (batch) int64
        -> output (batch, src, 2 hidden), zero past a row's length;
           final states, each (batch, 2 hidden): hidden, and for the LSTM cell
    """

    def __init__(self, cell: str, size: int, hidden: int) -> None:
        super().__init__()
        gates = GATES[cell]
        self.cell = cell
        self.w = glorot(2, gates * hidden, size, gates=gates)
        self.r = glorot(2, gates * hidden, hidden, gates=gates)
        self.b = nn.Parameter(torch.zeros(2, 2 * gates * hidden))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        op = {"gru": torch_ops.gru, "lstm": torch_ops.lstm}[self.cell]
        output, *finals = op(x, lengths, self.w, self.r, self.b)
        return output, tuple(finals)


def lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next hidden and cell state; `gates` (..., 4 hidden) are the sums before the nonlinearities."""
    hidden = cell.shape[-1]
    i, o, f = torch.sigmoid(gates[..., : 3 * hidden]).chunk(3, -1)
    cell = f * cell + i * torch.tanh(gates[..., 3 * hidden :])
    return o * torch.tanh(cell), cell


class Cell(nn.Module, ABC):
    """One step of a recurrent layer; states are (batch, beam, ...).

    The cell takes `projected` = W x + b, so that a caller can compute parts of this sum once per sentence.
    """

    final_states: tuple[str, ...] = ("hidden",)
    """Names of the final states of an encoder layer with this cell, from which a decoder cell can start."""

    @classmethod
    def from_sizes(cls, size: int, hidden: int, tape: int) -> Cell:
        """Build the cell; `tape` is the number of slots of an LSTMN cell."""
        return cls(size, hidden)

    def start(self, initial: State) -> State:
        """Return the first state from one tensor (batch, 1, hidden) for each of `final_states`."""
        return initial

    def query(self, state: State) -> Tensor:
        """Return the last output (batch, beam, hidden), the query of an attention before the cell."""
        return state["hidden"]

    @abstractmethod
    def projection(self) -> tuple[Tensor, Tensor]:
        """Return W (rows, size) and b (rows)."""

    @abstractmethod
    def forward(self, projected: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the output (batch, beam, hidden) and the next state from `projected` (batch, beam, rows)."""


class GruCell(Cell):
    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.w, self.r = glorot(3 * hidden, size, gates=3), glorot(3 * hidden, hidden, gates=3)
        self.bias_w, self.bias_r = nn.Parameter(torch.zeros(3 * hidden)), nn.Parameter(torch.zeros(3 * hidden))

    def projection(self) -> tuple[Tensor, Tensor]:
        return self.w, self.bias_w

    def forward(self, projected: Tensor, state: State) -> tuple[Tensor, State]:
        h = state["hidden"]
        hidden = h.shape[-1]
        from_h = nn.functional.linear(h, self.r, self.bias_r)
        z, r = torch.sigmoid(projected[..., : 2 * hidden] + from_h[..., : 2 * hidden]).chunk(2, -1)
        n = torch.tanh(projected[..., 2 * hidden :] + r * from_h[..., 2 * hidden :])
        new = n + z * (h - n)
        return new, {"hidden": new}


class LstmCell(Cell):
    final_states = ("hidden", "cell")

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.w, self.r = glorot(4 * hidden, size, gates=4), glorot(4 * hidden, hidden, gates=4)
        self.bias = nn.Parameter(torch.zeros(4 * hidden))

    def projection(self) -> tuple[Tensor, Tensor]:
        return self.w, self.bias

    def forward(self, projected: Tensor, state: State) -> tuple[Tensor, State]:
        new, cell = lstm_step(projected + nn.functional.linear(state["hidden"], self.r), state["cell"])
        return new, {"hidden": new, "cell": cell}
