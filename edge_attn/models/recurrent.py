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

import torch
from torch import Tensor, nn

from edge_attn.models import torch_ops

GATES = {"gru": 3, "lstm": 4}
STATES = {"gru": ("hidden",), "lstm": ("hidden", "cell")}


def _weights(*shape: int, gates: int) -> nn.Parameter:
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
        self.w = _weights(2, gates * hidden, size, gates=gates)
        self.r = _weights(2, gates * hidden, hidden, gates=gates)
        self.b = nn.Parameter(torch.zeros(2, 2 * gates * hidden))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        op = {"gru": torch_ops.gru, "lstm": torch_ops.lstm}[self.cell]
        output, *finals = op(x, lengths, self.w, self.r, self.b)
        return output, tuple(finals)


class GruCell(nn.Module):
    """x (..., size), state (hidden (..., hidden),) -> the next state."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.w, self.r = _weights(3 * hidden, size, gates=3), _weights(3 * hidden, hidden, gates=3)
        self.bias_w, self.bias_r = nn.Parameter(torch.zeros(3 * hidden)), nn.Parameter(torch.zeros(3 * hidden))

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = state
        hidden = h.shape[-1]
        from_x = nn.functional.linear(x, self.w, self.bias_w)
        from_h = nn.functional.linear(h, self.r, self.bias_r)
        z, r = torch.sigmoid(from_x[..., : 2 * hidden] + from_h[..., : 2 * hidden]).chunk(2, -1)
        n = torch.tanh(from_x[..., 2 * hidden :] + r * from_h[..., 2 * hidden :])
        return (n + z * (h - n),)


class LstmCell(nn.Module):
    """x (..., size), state (hidden, cell), each (..., hidden) -> the next state."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.w, self.r = _weights(4 * hidden, size, gates=4), _weights(4 * hidden, hidden, gates=4)
        self.bias = nn.Parameter(torch.zeros(4 * hidden))

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        hidden = h.shape[-1]
        gates = nn.functional.linear(x, self.w, self.bias) + nn.functional.linear(h, self.r)
        i, o, f = torch.sigmoid(gates[..., : 3 * hidden]).chunk(3, -1)
        c = f * c + i * torch.tanh(gates[..., 3 * hidden :])
        return o * torch.tanh(c), c


CELLS: dict[str, type[nn.Module]] = {"gru": GruCell, "lstm": LstmCell}
