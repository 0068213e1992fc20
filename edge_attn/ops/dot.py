"""Dot attention (Luong et al. 2015, https://arxiv.org/abs/1508.04025, equation 8; Vaswani et al. 2017, equation 1).

    e_ij = scale * q_i^T k_j,   alpha_i = softmax(e_i),   c_i = sum_j alpha_ij h_j

dot: k = h, scale 1; general: k = W h, once per sentence; scaled: scale = 1 / sqrt(size).

Shapes:
    query (batch, tgt, attn), keys (batch, src, attn), values (batch, src, value), mask (batch, src)
    -> context (batch, tgt, value), weights (batch, tgt, src)
"""

from __future__ import annotations

import numpy as np

from edge_attn.ops import SOFTMAX_AND_CONTEXT, Op, masked_softmax


def oracle(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, mask: np.ndarray, *, scale: float = 1.0
) -> tuple[np.ndarray, ...]:
    query, keys, values = (np.asarray(x, np.float64) for x in (query, keys, values))
    weights = masked_softmax(scale * (query @ keys.transpose(0, 2, 1)), mask[:, None, :])
    return weights @ values, weights


OP = Op(
    name="DotAttention",
    inputs={"query": "T", "keys": "T", "values": "T", "mask": "tensor(bool)"},
    outputs=("context", "weights"),
    oracle=oracle,
    body=f"""
  factor = Constant <value_float : float = @scale> ()
  factor_like = CastLike (factor, query)
  scaled = Mul (query, factor_like)
  keys_transposed = Transpose <perm = [0, 2, 1]> (keys)
  energy = MatMul (scaled, keys_transposed)
{SOFTMAX_AND_CONTEXT}""",
    attributes={"scale": 1.0},
    paper="https://arxiv.org/abs/1508.04025",
)
