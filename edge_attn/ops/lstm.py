"""Long short-term memory over sequences with lengths (Hochreiter and Schmidhuber 1997), from a zero state.

    i, o, f = sigmoid(W x + b + R h + b'),  g = tanh(W_c x + b_c + R_c h + b'_c)
    c' = f * c + i * g,  h' = o * tanh(c')

The second direction, if any, reads each row from its own last element. Gates are in ONNX's order: i, o, f, c.

Shapes:
    x (batch, src, size), lengths (batch) int64, w (directions, 4 hidden, size), r (directions, 4 hidden, hidden),
    b (directions, 8 hidden): biases of w, then of r
    -> output (batch, src, directions * hidden), zero past a row's length;
       last and last_cell (batch, directions * hidden)
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
        h, c = state
        i, o, f, g = np.split(w[d] @ x_t + r[d] @ h + b[d, : 4 * hidden] + b[d, 4 * hidden :], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    return scan(x, lengths, w.shape[0], hidden, 2, step)


OP = Op(
    name="Lstm",
    inputs=INPUTS,
    outputs=("output", "last", "last_cell"),
    oracle=oracle,
    body=body("LSTM", "", ("last", "last_cell")),
    attributes=ATTRIBUTES,
    paper="https://doi.org/10.1162/neco.1997.9.8.1735",
)
