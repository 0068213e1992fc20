"""Recurrent layers over whole sequences (with lengths) and cells for one step.

Parameters stand in ONNX's gate order (GRU: z, r, h; LSTM: i, o, f, c), so an exported graph holds them as they are.

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

from edge_attn.models.layers import torch_ops

GATES = {"gru": 3, "lstm": 4}
State = dict[str, Tensor]


def glorot(*shape: int, gates: int) -> nn.Parameter:
    """(..., gates * hidden, size), each gate's block with Glorot and Bengio's uniform bound (2010)."""
    bound = math.sqrt(6.0 / (shape[-2] // gates + shape[-1]))
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class RecurrentLayer(nn.Module):
    """One bidirectional layer.

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
    """The next hidden and cell state, from the sums that the gates are made of, (..., 4 hidden)."""
    hidden = cell.shape[-1]
    i, o, f = torch.sigmoid(gates[..., : 3 * hidden]).chunk(3, -1)
    cell = f * cell + i * torch.tanh(gates[..., 3 * hidden :])
    return o * torch.tanh(cell), cell


class Cell(nn.Module, ABC):
    """One step of a recurrent layer; states are (batch, beam, ...).

    What of the input enters is linear in it, so `projected` = W x + b is made by whoever knows x, or a part of it.
    """

    ends: tuple[str, ...] = ("hidden",)
    """The states in which an encoder ends and from which a decoder may start."""
    options: tuple[str, ...] = ()
    """The keys of Seq2SeqConfig that its constructor takes after the sizes."""

    def start(self, given: State) -> State:
        """The first state from `ends`, each (batch, 1, hidden)."""
        return given

    def query(self, state: State) -> Tensor:
        """Its last output (batch, beam, hidden), with which an attention before the cell asks."""
        return state["hidden"]

    @abstractmethod
    def projection(self) -> tuple[Tensor, Tensor]:
        """W (rows, size) and b (rows)."""

    @abstractmethod
    def forward(self, projected: Tensor, state: State) -> tuple[Tensor, State]:
        """projected (batch, beam, rows) -> output (batch, beam, hidden), the next state."""


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
    ends = ("hidden", "cell")

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.w, self.r = glorot(4 * hidden, size, gates=4), glorot(4 * hidden, hidden, gates=4)
        self.bias = nn.Parameter(torch.zeros(4 * hidden))

    def projection(self) -> tuple[Tensor, Tensor]:
        return self.w, self.bias

    def forward(self, projected: Tensor, state: State) -> tuple[Tensor, State]:
        new, cell = lstm_step(projected + nn.functional.linear(state["hidden"], self.r), state["cell"])
        return new, {"hidden": new, "cell": cell}
