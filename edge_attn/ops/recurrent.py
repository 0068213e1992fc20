"""The parts that `Gru` and `Lstm` share: the float64 loop of their oracles and their ONNX function body."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

INPUTS = {"x": "T", "lengths": "tensor(int64)", "w": "T", "r": "T", "b": "T"}
ATTRIBUTES = {"hidden_size": 0, "direction": "bidirectional"}
"""Repeat the shapes of the weights, because a graph parser needs them as constants. Nothing else reads them."""

Step = Callable[[np.ndarray, tuple[np.ndarray, ...], int], tuple[np.ndarray, ...]]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x))."""
    result: np.ndarray = 1.0 / (1.0 + np.exp(-x))
    return result


def scan(
    x: np.ndarray, lengths: np.ndarray, directions: int, hidden: int, states: int, step: Step
) -> tuple[np.ndarray, ...]:
    """Run `step(x_t, state, direction)` over the real elements of each row, one row at a time.

    Args:
        x: inputs (batch, src, size).
        lengths: number of real elements of each row (batch).
        directions: 1, or 2 with the second from the last real element to the first.
        hidden: size of each state.
        states: number of states: 1 for a GRU, 2 for an LSTM.
        step: returns the next states, the hidden state first.

    Returns:
        Output (batch, src, directions * hidden), then the final states, each (batch, directions * hidden).
    """
    batch, time = x.shape[:2]
    output = np.zeros((batch, time, directions * hidden))
    finals = [np.zeros((batch, directions * hidden)) for _ in range(states)]
    for row in range(batch):
        for d in range(directions):
            part = slice(d * hidden, (d + 1) * hidden)
            state = tuple(np.zeros(hidden) for _ in range(states))  # each (hidden)
            steps = range(int(lengths[row]))
            for t in reversed(steps) if d else steps:
                state = step(x[row, t], state, d)
                output[row, t, part] = state[0]
            for final, value in zip(finals, state, strict=True):
                final[row, part] = value
    return (output, *finals)


def body(op: str, options: str, finals: tuple[str, ...]) -> str:
    """Return the function body around ONNX's GRU or LSTM.

    It transposes to time-major axes and back, puts the directions side by side and sets rows of length 0 to zero.
    """
    final_statements = "".join(
        f"""
  {final}_transposed = Transpose <perm = [1, 0, 2]> ({final}_raw)
  {final}_reshaped = Reshape ({final}_transposed, final_shape)
  {final} = Where (nonempty_row, {final}_reshaped, zero)"""
        for final in finals
    )
    raw = ", ".join(["output_raw", *(f"{final}_raw" for final in finals)])
    return f"""
  x_time_major = Transpose <perm = [1, 0, 2]> (x)
  lengths_int32 = Cast <to = 6> (lengths)
  {raw} = {op} <hidden_size : int = @hidden_size, direction : string = @direction{options}>
    (x_time_major, w, r, b, lengths_int32)
  output_transposed = Transpose <perm = [2, 0, 1, 3]> (output_raw)
  output_shape = Constant <value_ints = [0, 0, -1]> ()
  output_reshaped = Reshape (output_transposed, output_shape)
  zero_float = Constant <value_float = 0.0> ()
  zero = CastLike (zero_float, x)
  zero_int64 = Constant <value_int = 0> ()
  nonempty = Greater (lengths, zero_int64)
  row_axes = Constant <value_ints = [1]> ()
  nonempty_row = Unsqueeze (nonempty, row_axes)
  step_axes = Constant <value_ints = [1, 2]> ()
  nonempty_step = Unsqueeze (nonempty, step_axes)
  output = Where (nonempty_step, output_reshaped, zero)
  final_shape = Constant <value_ints = [0, -1]> ()
{final_statements}"""
