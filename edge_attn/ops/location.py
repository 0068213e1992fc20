"""Location-based attention (Luong et al. 2015, https://arxiv.org/abs/1508.04025, equation 8): from the state alone.

    e_ij = (W q_i)_j,   alpha_i = softmax(e_i),   c_i = sum_j alpha_ij h_j

W has one row for each source position. A shorter sentence uses the first rows. Words of a longer sentence past the last
row are masked ("for long sentences, we ignore words near the end", footnote 6).

Shapes:
    query (batch, tgt, query), w (positions, query), values (batch, src, value), mask (batch, src)
    -> context (batch, tgt, value), weights (batch, tgt, src)
"""

from __future__ import annotations

import numpy as np

from edge_attn.ops import Op, masked_softmax, softmax_body


def oracle(query: np.ndarray, w: np.ndarray, values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    query, w, values = (np.asarray(x, np.float64) for x in (query, w, values))
    used_rows = min(values.shape[1], w.shape[0])
    energy = np.zeros((*query.shape[:2], values.shape[1]))
    energy[:, :, :used_rows] = query @ w[:used_rows].T
    weights = masked_softmax(energy, mask[:, None, :] & (np.arange(values.shape[1]) < w.shape[0]))
    return weights @ values, weights


OP = Op(
    name="LocationAttention",
    inputs={"query": "T", "w": "T", "values": "T", "mask": "tensor(bool)"},
    outputs=("context", "weights"),
    oracle=oracle,
    body=f"""
  src = Shape <start = 1, end = 2> (values)
  positions = Shape <start = 0, end = 1> (w)
  zero_int64 = Constant <value_int = 0> ()
  one_int64 = Constant <value_int = 1> ()
  end = Squeeze (src)
  position = Range (zero_int64, end, one_int64)
  last_row = Sub (positions, one_int64)
  row_index = Min (position, last_row)
  rows = Gather (w, row_index)
  rows_transposed = Transpose <perm = [1, 0]> (rows)
  energy = MatMul (query, rows_transposed)
  has_row = Less (position, positions)
  mask_axes = Constant <value_ints = [1]> ()
  real = Unsqueeze (mask, mask_axes)
  keep = And (real, has_row)
{softmax_body("weights")}
  context = MatMul (weights, values)
""",
    attributes={},
    paper="https://arxiv.org/abs/1508.04025",
)
