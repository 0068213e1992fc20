"""Attention pooling: a sequence as one vector (Yang et al. 2016, https://aclanthology.org/N16-1174, equations 5 to 7).

    e_j = u^T tanh(W h_j + b),   alpha = softmax(e),   c = sum_j alpha_j h_j

Shapes:
    values (batch, src, value), mask (batch, src), w (attn, value), b (attn), u (attn)
    -> context (batch, value), weights (batch, src)
"""

from __future__ import annotations

import numpy as np

from edge_attn.ops import Op, energy_body, masked_softmax, softmax_body


def oracle(values: np.ndarray, mask: np.ndarray, w: np.ndarray, b: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
    values, w, b, u = (np.asarray(x, np.float64) for x in (values, w, b, u))
    weights = masked_softmax(np.tanh(values @ w.T + b) @ u, mask)
    return np.einsum("bs,bsv->bv", weights, values), weights


OP = Op(
    name="AttentionPooling",
    inputs={"values": "T", "mask": "tensor(bool)", "w": "T", "b": "T", "u": "T"},
    outputs=("context", "weights"),
    oracle=oracle,
    body=f"""
  w_transposed = Transpose <perm = [1, 0]> (w)
  product = MatMul (values, w_transposed)
  sum = Add (product, b)
  hidden = Tanh (sum)
{energy_body("u")}  keep = Identity (mask)
{softmax_body("weights")}
  row_axes = Constant <value_ints = [1]> ()
  weight_rows = Unsqueeze (weights, row_axes)
  context_rows = MatMul (weight_rows, values)
  context = Squeeze (context_rows, row_axes)
""",
    attributes={},
    paper="https://aclanthology.org/N16-1174",
)
