"""Location-based attention (Luong et al. 2015, https://arxiv.org/abs/1508.04025, equation 8): from the state alone.

    e_ij = (W q_i)_j,   alpha_i = softmax(e_i),   c_i = sum_j alpha_ij h_j

W has a row for each source position that it knows. Of a shorter sentence the first rows count; of a longer one the
words past the last row take no part ("for long sentences, we ignore words near the end", footnote 6).

Shapes:
    query (batch, tgt, query), w (positions, query), values (batch, src, value), mask (batch, src)
    -> context (batch, tgt, value), weights (batch, tgt, src)
"""

from __future__ import annotations

import numpy as np

from edge_attn.ops import KEPT_SOFTMAX, Op, masked_softmax


def oracle(query: np.ndarray, w: np.ndarray, values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    query, w, values = (np.asarray(x, np.float64) for x in (query, w, values))
    known = min(values.shape[1], w.shape[0])
    energy = np.zeros((*query.shape[:2], values.shape[1]))
    energy[:, :, :known] = query @ w[:known].T
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
  zero_position = Constant <value_int = 0> ()
  one_position = Constant <value_int = 1> ()
  end = Squeeze (src)
  position = Range (zero_position, end, one_position)
  last_row = Sub (positions, one_position)
  row = Min (position, last_row)
  rows = Gather (w, row)
  columns = Transpose <perm = [1, 0]> (rows)
  energy = MatMul (query, columns)
  known = Less (position, positions)
  mask_axes = Constant <value_ints = [1]> ()
  real = Unsqueeze (mask, mask_axes)
  keep = And (real, known)
{KEPT_SOFTMAX}
  context = MatMul (weights, values)
""",
    attributes={},
    paper="https://arxiv.org/abs/1508.04025",
)
