"""Intra-attention: one direction of an LSTMN (Cheng et al. 2016, https://arxiv.org/abs/1601.06733, equations 4 to 9).

An LSTM passes on its last hidden and cell state. An LSTMN keeps the tape of all past states and attends to it:

    q_t = W_x x_t + b_x + W_h~ h~_{t-1},   a_i = v^T tanh(W_h h_i + q_t),   s = softmax(a) over the tape, i < t
    h~_t = sum_i s_i h_i,   c~_t = sum_i s_i c_i
    i, o, f = sigmoid(W x_t + b + R h~_t),   g = tanh(W_c x_t + b_c + R_c h~_t)
    c_t = f * c~_t + i * g,   h_t = o * tanh(c_t)

The tape is empty at first, so h~ and c~ are zero, as for any row with no key. Gates are in ONNX's order: i, o, f, c.
The last rows of w, r and b compute the query: W_x, W_h~ and b_x.

Shapes:
    x (batch, src, size), lengths (batch) int64, w (4 hidden + attn, size), r (4 hidden + attn, hidden),
    b (4 hidden + attn), u (attn, hidden), which is W_h, v (attn)
    -> output (batch, src, hidden) and weights (batch, src, src), zero past a row's length;
       last and last_cell (batch, hidden)
"""

from __future__ import annotations

import numpy as np

from edge_attn.ops import Op, masked_softmax
from edge_attn.ops.recurrent import sigmoid


def oracle(
    x: np.ndarray, lengths: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, ...]:
    x, w, r, b, u, v = (np.asarray(a, np.float64) for a in (x, w, r, b, u, v))
    batch, time, _ = x.shape
    hidden = r.shape[1]
    weights = np.zeros((batch, time, time))
    h, c = np.zeros((batch, time, hidden)), np.zeros((batch, time, hidden))
    last, last_cell = np.zeros((batch, hidden)), np.zeros((batch, hidden))
    for row in range(batch):
        summary = np.zeros(hidden)
        for t in range(int(lengths[row])):
            query = w[4 * hidden :] @ x[row, t] + b[4 * hidden :] + r[4 * hidden :] @ summary  # (attn)
            energy = np.tanh(h[row] @ u.T + query) @ v  # (src)
            weights[row, t] = masked_softmax(energy, np.arange(time) < t)
            summary, cell = weights[row, t] @ h[row], weights[row, t] @ c[row]
            i, o, f, g = np.split(w[: 4 * hidden] @ x[row, t] + b[: 4 * hidden] + r[: 4 * hidden] @ summary, 4)
            last_cell[row] = c[row, t] = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            last[row] = h[row, t] = sigmoid(o) * np.tanh(c[row, t])
    return h, last, last_cell, weights


OP = Op(
    name="IntraAttention",
    inputs={"x": "T", "lengths": "tensor(int64)", "w": "T", "r": "T", "b": "T", "u": "T", "v": "T"},
    outputs=("output", "last", "last_cell", "weights"),
    oracle=oracle,
    body="""
  w_transposed = Transpose <perm = [1, 0]> (w)
  r_transposed = Transpose <perm = [1, 0]> (r)
  u_transposed = Transpose <perm = [1, 0]> (u)
  second = Constant <value_ints = [1]> ()
  column = Unsqueeze (v, second)
  from_x = MatMul (x, w_transposed)
  projected = Add (from_x, b)
  steps = Transpose <perm = [1, 0, 2]> (projected)

  x_shape = Shape (x)
  u_shape = Shape (u)
  first = Constant <value_ints = [0]> ()
  batch = Gather (x_shape, first)
  time = Gather (x_shape, second)
  attn = Gather (u_shape, first)
  hidden = Gather (u_shape, second)
  two = Constant <value_ints = [2]> ()
  four = Constant <value_ints = [4]> ()
  states = Mul (hidden, two)
  gates = Mul (hidden, four)
  blocks = Concat <axis = 0> (gates, attn)
  keys_shape = Concat <axis = 0> (batch, time, attn)
  tape_shape = Concat <axis = 0> (batch, time, states)
  query_shape = Concat <axis = 0> (batch, attn)
  zero_float = Constant <value_float = 0.0> ()
  zero = CastLike (zero_float, x)
  no_keys = Expand (zero, keys_shape)
  no_tape = Expand (zero, tape_shape)
  no_query = Expand (zero, query_shape)
  zero_int64 = Constant <value_int = 0> ()
  one_int64 = Constant <value_int = 1> ()
  end = Squeeze (time)
  positions = Range (zero_int64, end, one_int64)
  first_slot = Equal (positions, zero_int64)
  neg_inf_float = Constant <value_float = -inf> ()
  neg_inf = CastLike (neg_inf_float, x)

  keys_end, tape_end, query_end, weights_steps = Scan <num_scan_inputs = 2, body = step
    (keys, tape, query, x_now, t) => (next_keys, next_tape, next_query, weights_now)
  {
    x_gates, x_query = Split <axis = -1> (x_now, blocks)
    full_query = Add (x_query, query)
    row_of_one = Unsqueeze (full_query, second)
    sum = Add (row_of_one, keys)
    inner = Tanh (sum)
    energy_column = MatMul (inner, column)
    energy = Squeeze (energy_column, two)
    before = Less (positions, t)
    allowed = Or (before, first_slot)
    masked = Where (allowed, energy, neg_inf)
    share = Softmax <axis = -1> (masked)
    weights_now = Where (before, share, zero)
    share_rows = Unsqueeze (share, second)
    summary_rows = MatMul (share_rows, tape)
    summary = Squeeze (summary_rows, second)
    summary_hidden, summary_cell = Split <axis = -1, num_outputs = 2> (summary)
    from_summary = MatMul (summary_hidden, r_transposed)
    summary_gates, next_query = Split <axis = -1> (from_summary, blocks)
    sums = Add (x_gates, summary_gates)
    sum_i, sum_o, sum_f, sum_c = Split <axis = -1, num_outputs = 4> (sums)
    gate_i = Sigmoid (sum_i)
    gate_o = Sigmoid (sum_o)
    gate_f = Sigmoid (sum_f)
    candidate = Tanh (sum_c)
    cell_from_summary = Mul (gate_f, summary_cell)
    cell_from_input = Mul (gate_i, candidate)
    cell = Add (cell_from_summary, cell_from_input)
    cell_out = Tanh (cell)
    state = Mul (gate_o, cell_out)
    key = MatMul (state, u_transposed)
    key_rows = Unsqueeze (key, second)
    state_and_cell = Concat <axis = -1> (state, cell)
    state_and_cell_rows = Unsqueeze (state_and_cell, second)
    at_t = Equal (positions, t)
    slot = Unsqueeze (at_t, second)
    next_keys = Where (slot, key_rows, keys)
    next_tape = Where (slot, state_and_cell_rows, tape)
  }> (no_keys, no_tape, no_query, steps, positions)

  length_rows = Unsqueeze (lengths, second)
  real_rows = Less (positions, length_rows)
  real = Unsqueeze (real_rows, two)
  weights_shape = Concat <axis = 0> (batch, time, time)
  weights_rows = Transpose <perm = [1, 0, 2]> (weights_steps)
  weights_square = Reshape (weights_rows, weights_shape)
  weights = Where (real, weights_square, zero)
  tape_real = Where (real, tape_end, zero)
  output, cells = Split <axis = -1, num_outputs = 2> (tape_real)
  last_positions = Sub (length_rows, one_int64)
  at_last = Equal (positions, last_positions)
  at_last_rows = Unsqueeze (at_last, two)
  last_row = Where (at_last_rows, output, zero)
  last = ReduceSum <keepdims = 0> (last_row, second)
  last_cell_row = Where (at_last_rows, cells, zero)
  last_cell = ReduceSum <keepdims = 0> (last_cell_row, second)
""",
    attributes={},
    paper="https://arxiv.org/abs/1601.06733",
)
