"""Gated recurrent unit over sequences with lengths (Cho et al. 2014, https://arxiv.org/abs/1406.1078), from zeros.

    z = sigmoid(W_z x + b_z + R_z h + b'_z),  r = sigmoid(W_r x + b_r + R_r h + b'_r)
    n = tanh(W_h x + b_h + r * (R_h h + b'_h)),  h' = (1 - z) * n + z * h

The second direction, if any, reads each row from its own last element. Gates are in ONNX's order: z, r, h.

Shapes:
    x (batch, src, size), lengths (batch) int64, w (directions, 3 hidden, size), r (directions, 3 hidden, hidden),
    b (directions, 6 hidden): biases of w, then of r
    -> output (batch, src, directions * hidden), zero past a row's length; last (batch, directions * hidden)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_attn.ops import Op
from edge_attn.ops.recurrent import ATTRIBUTES, INPUTS, body, scan, sigmoid


def oracle(
    x: np.ndarray, lengths: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray, **_: Any
) -> tuple[np.ndarray, ...]:
    x, w, r, b = (np.asarray(a, np.float64) for a in (x, w, r, b))
    hidden = r.shape[2]

    def step(x_t: np.ndarray, state: tuple[np.ndarray, ...], d: int) -> tuple[np.ndarray, ...]:
        (h,) = state
        x_z, x_r, x_h = np.split(w[d] @ x_t + b[d, : 3 * hidden], 3)
        h_z, h_r, h_h = np.split(r[d] @ h + b[d, 3 * hidden :], 3)
        z, reset = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        return ((1 - z) * np.tanh(x_h + reset * h_h) + z * h,)

    return scan(x, lengths, w.shape[0], hidden, 1, step)


OP = Op(
    name="Gru",
    inputs=INPUTS,
    outputs=("output", "last"),
    oracle=oracle,
    body=body("GRU", ", linear_before_reset = 1", ("last",)),
    attributes=ATTRIBUTES,
    paper="https://arxiv.org/abs/1406.1078",
)
