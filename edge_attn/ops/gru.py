"""Gated recurrent unit over sequences with lengths (Cho et al. 2014, https://arxiv.org/abs/1406.1078), from zeros.

    z = sigmoid(W_z x + b_z + R_z h + b'_z),  r = sigmoid(W_r x + b_r + R_r h + b'_r)
    n = tanh(W_h x + b_h + r * (R_h h + b'_h)),  h' = (1 - z) * n + z * h

The second direction, if any, reads each row from its own last element. Gates stand in ONNX's order: z, r, h.

Shapes:
    x (batch, src, size), lengths (batch) int64, w (directions, 3 hidden, size), r (directions, 3 hidden, hidden),
    b (directions, 6 hidden): biases of w, then of r
    -> output (batch, src, directions * hidden), zero past a row's length; last (batch, directions * hidden)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_attn.ops import Op


def sigmoid(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1.0 / (1.0 + np.exp(-x))
    return result


Step = Callable[[np.ndarray, tuple[np.ndarray, ...], int], tuple[np.ndarray, ...]]


def scan(
    x: np.ndarray, lengths: np.ndarray, directions: int, hidden: int, states: int, step: Step
) -> tuple[np.ndarray, ...]:
    """Runs `step(x_t, state, direction)` over each row's real elements; the plainest writing, one row at a time."""
    batch, time = x.shape[:2]
    output = np.zeros((batch, time, directions * hidden))
    finals = [np.zeros((batch, directions * hidden)) for _ in range(states)]
    for row in range(batch):
        for d in range(directions):
            part = slice(d * hidden, (d + 1) * hidden)
            state = tuple(np.zeros(hidden) for _ in range(states))
            steps = range(int(lengths[row]))
            for t in reversed(steps) if d else steps:
                state = step(x[row, t], state, d)
                output[row, t, part] = state[0]
            for final, value in zip(finals, state, strict=True):
                final[row, part] = value
    return (output, *finals)


def oracle(
    x: np.ndarray, lengths: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray, **_: Any
) -> tuple[np.ndarray, ...]:
    x, w, r, b = (np.asarray(a, np.float64) for a in (x, w, r, b))
    hidden = r.shape[2]

    def step(now: np.ndarray, state: tuple[np.ndarray, ...], d: int) -> tuple[np.ndarray, ...]:
        (h,) = state
        x_z, x_r, x_h = np.split(w[d] @ now + b[d, : 3 * hidden], 3)
        h_z, h_r, h_h = np.split(r[d] @ h + b[d, 3 * hidden :], 3)
        z, reset = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        return ((1 - z) * np.tanh(x_h + reset * h_h) + z * h,)

    return scan(x, lengths, w.shape[0], hidden, 1, step)


def body(op: str, options: str, finals: tuple[str, ...]) -> str:
    """The function body around ONNX's GRU or LSTM: axes turned to time-major and back, directions side by side.

    `hidden_size` and `direction` are attributes because a graph parser wants them as constants.
    """
    ends = "".join(
        f"""
  {final}_turned = Transpose <perm = [1, 0, 2]> ({final}_raw)
  {final}_some = Reshape ({final}_turned, end_shape)
  {final} = Where (row_some, {final}_some, nothing)"""
        for final in finals
    )
    raw = ", ".join(["output_raw", *(f"{final}_raw" for final in finals)])
    return f"""
  steps = Transpose <perm = [1, 0, 2]> (x)
  rows = Cast <to = 6> (lengths)
  {raw} = {op} <hidden_size : int = @hidden_size, direction : string = @direction{options}> (steps, w, r, b, rows)
  output_turned = Transpose <perm = [2, 0, 1, 3]> (output_raw)
  output_shape = Constant <value_ints = [0, 0, -1]> ()
  output_some = Reshape (output_turned, output_shape)
  zero = Constant <value_float = 0.0> ()
  nothing = CastLike (zero, x)
  no_length = Constant <value_int = 0> ()
  some = Greater (lengths, no_length)
  row_axes = Constant <value_ints = [1]> ()
  row_some = Unsqueeze (some, row_axes)
  all_axes = Constant <value_ints = [1, 2]> ()
  all_some = Unsqueeze (some, all_axes)
  output = Where (all_some, output_some, nothing)
  end_shape = Constant <value_ints = [0, -1]> ()
{ends}"""


ATTRIBUTES = {"hidden_size": 0, "direction": "bidirectional"}
"""They repeat what the shapes say, for graph parsers; nothing else reads them."""
INPUTS = {"x": "T", "lengths": "tensor(int64)", "w": "T", "r": "T", "b": "T"}

OP = Op(
    name="Gru",
    inputs=INPUTS,
    outputs=("output", "last"),
    oracle=oracle,
    body=body("GRU", ", linear_before_reset = 1", ("last",)),
    attributes=ATTRIBUTES,
    paper="https://arxiv.org/abs/1406.1078",
)
