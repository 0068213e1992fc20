"""Multi-head dot attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, 3.2.2) over projected inputs.

    e^n_ij = scale * q^n_i^T k^n_j,   alpha^n_i = softmax(e^n_i),   c_i = [.., sum_j alpha^n_ij v^n_j, ..]

for each head n; the heads' parts of queries, keys and values are concatenated. With `causal` = 1 query i attends to
key j if j <= i + src - tgt. So the last query attends to the last key, and queries may follow a cache of past keys.

Shapes:
    query (batch, tgt, heads * size), keys (batch, src, heads * size), values (batch, src, heads * value),
    mask (batch, src) -> context (batch, tgt, heads * value), weights (batch, heads, tgt, src)
"""

from __future__ import annotations

import numpy as np

from edge_attn.ops import Op, masked_softmax, softmax_body


def oracle(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    mask: np.ndarray,
    *,
    heads: int,
    scale: float = 1.0,
    causal: int = 0,
) -> tuple[np.ndarray, ...]:
    query, keys, values = (np.asarray(x, np.float64) for x in (query, keys, values))
    tgt, src = query.shape[1], keys.shape[1]
    past = np.tri(tgt, src, src - tgt, dtype=bool)
    visible = mask[:, None, :] & (past if causal else True)
    contexts, weights = [], []
    for q, k, v in zip(*(np.split(x, heads, axis=-1) for x in (query, keys, values)), strict=True):
        weights.append(masked_softmax(scale * (q @ k.transpose(0, 2, 1)), visible))
        contexts.append(weights[-1] @ v)
    return np.concatenate(contexts, axis=-1), np.stack(weights, axis=1)


OP = Op(
    name="MultiHeadDotAttention",
    inputs={"query": "T", "keys": "T", "values": "T", "mask": "tensor(bool)"},
    outputs=("context", "weights"),
    oracle=oracle,
    body=f"""
  copied_sizes = Constant <value_ints = [0, 0]> ()
  minus_one = Constant <value_ints = [-1]> ()
  head_axis = Constant <value_int : int = @heads> ()
  head_count = Reshape (head_axis, minus_one)
  split_shape = Concat <axis = 0> (copied_sizes, head_count, minus_one)
  query_parts = Reshape (query, split_shape)
  key_parts = Reshape (keys, split_shape)
  value_parts = Reshape (values, split_shape)
  query_heads = Transpose <perm = [0, 2, 1, 3]> (query_parts)
  keys_transposed = Transpose <perm = [0, 2, 3, 1]> (key_parts)
  value_heads = Transpose <perm = [0, 2, 1, 3]> (value_parts)
  factor = Constant <value_float : float = @scale> ()
  factor_like = CastLike (factor, query)
  scaled = Mul (query_heads, factor_like)
  energy = MatMul (scaled, keys_transposed)

  zero_int64 = Constant <value_int = 0> ()
  one_int64 = Constant <value_int = 1> ()
  length_axis = Constant <value_int = 1> ()
  query_shape = Shape (query)
  keys_shape = Shape (keys)
  tgt = Gather (query_shape, length_axis)
  src = Gather (keys_shape, length_axis)
  first_query = Sub (src, tgt)
  key_positions = Range (zero_int64, src, one_int64)
  query_positions = Range (first_query, src, one_int64)
  query_columns = Unsqueeze (query_positions, minus_one)
  past = LessOrEqual (key_positions, query_columns)
  causal_int = Constant <value_int : int = @causal> ()
  not_causal = Equal (causal_int, zero_int64)
  visible = Or (past, not_causal)
  mask_axes = Constant <value_ints = [1, 2]> ()
  real = Unsqueeze (mask, mask_axes)
  keep = And (real, visible)
{softmax_body("weights")}
  context_heads = MatMul (weights, value_heads)
  context_parts = Transpose <perm = [0, 2, 1, 3]> (context_heads)
  merged_shape = Concat <axis = 0> (copied_sizes, minus_one)
  context = Reshape (context_parts, merged_shape)
""",
    attributes={"heads": 1, "scale": 1.0, "causal": 0},
    paper="https://arxiv.org/abs/1706.03762",
)
