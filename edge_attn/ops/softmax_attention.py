"""Softmax attention over the energies of any score.

    alpha_i = softmax(e_i),   c_i = sum_j alpha_ij h_j

With a penalty p > 0 a row with no key returns softmax(e_i - p) over every position instead of zeros. In exact
arithmetic that is softmax(e_i). Keras uses p = 1e9, whose rounding makes the energies equal.

Shapes:
    energy (batch, tgt, src), values (batch, src, value), mask (batch, queries, src), queries = tgt or 1
    -> context (batch, tgt, value), weights (batch, tgt, src)
"""

from __future__ import annotations

import numpy as np

from edge_attn.ops import Op, masked_softmax


def oracle(energy: np.ndarray, values: np.ndarray, mask: np.ndarray, *, penalty: float = 0.0) -> tuple[np.ndarray, ...]:
    energy, values = (np.asarray(x, np.float64) for x in (energy, values))
    weights = masked_softmax(energy, mask)
    if penalty:
        weights = np.where(mask.any(-1, keepdims=True), weights, masked_softmax(energy - penalty, np.array(True)))
    return weights @ values, weights


OP = Op(
    name="SoftmaxAttention",
    inputs={"energy": "T", "values": "T", "mask": "tensor(bool)"},
    outputs=("context", "weights"),
    oracle=oracle,
    body="""
  keep_int = Cast <to = 6> (mask)
  last_axis = Constant <value_ints = [-1]> ()
  has_key_int = ReduceMax <keepdims = 1> (keep_int, last_axis)
  has_key = Cast <to = 9> (has_key_int)
  no_key = Not (has_key)
  penalty_float = Constant <value_float : float = @penalty> ()
  penalty_like = CastLike (penalty_float, energy)
  penalized = Sub (energy, penalty_like)
  neg_inf_float = Constant <value_float = -inf> ()
  neg_inf = CastLike (neg_inf_float, energy)
  fill = Where (no_key, penalized, neg_inf)
  masked = Where (mask, energy, fill)
  softmax = Softmax <axis = -1> (masked)
  zero_float = Constant <value_float = 0.0> ()
  zero = CastLike (zero_float, energy)
  has_penalty = Greater (penalty_like, zero)
  attends_anyway = And (no_key, has_penalty)
  visible = Or (mask, attends_anyway)
  weights = Where (visible, softmax, zero)
  context = MatMul (weights, values)
""",
    attributes={"penalty": 0.0},
    paper="https://arxiv.org/abs/1409.0473",
)
