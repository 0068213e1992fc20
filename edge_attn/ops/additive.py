"""Additive attention (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473, A.1.2), which is Luong's concat too.

    e_ij = v^T tanh(q_i + k_j),   alpha_i = softmax(e_i),   c_i = sum_j alpha_ij h_j

where q = W s and k = U h + b are inputs, projected before the call; k is computed once per sentence.

Shapes:
    query (batch, tgt, attn), keys (batch, src, attn), values (batch, src, value), mask (batch, src), v (attn)
    -> context (batch, tgt, value), weights (batch, tgt, src)
"""

from __future__ import annotations

import numpy as np

from edge_attn.ops import SOFTMAX_AND_CONTEXT, Op, energy_body, masked_softmax


def oracle(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, mask: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, ...]:
    query, keys, values, v = (np.asarray(x, np.float64) for x in (query, keys, values, v))
    energy = np.tanh(query[:, :, None, :] + keys[:, None, :, :]) @ v
    weights = masked_softmax(energy, mask[:, None, :])
    return weights @ values, weights


OP = Op(
    name="AdditiveAttention",
    inputs={"query": "T", "keys": "T", "values": "T", "mask": "tensor(bool)", "v": "T"},
    outputs=("context", "weights"),
    oracle=oracle,
    body=f"""
  query_axes = Constant <value_ints = [2]> ()
  query_rows = Unsqueeze (query, query_axes)
  key_axes = Constant <value_ints = [1]> ()
  key_columns = Unsqueeze (keys, key_axes)
  sum = Add (query_rows, key_columns)
  hidden = Tanh (sum)
{energy_body("v")}{SOFTMAX_AND_CONTEXT}""",
    attributes={},
    paper="https://arxiv.org/abs/1409.0473",
)
