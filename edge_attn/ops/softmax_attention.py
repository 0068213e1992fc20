"""Softmax attention over the energies of any score.

    alpha_i = softmax(e_i),   c_i = sum_j alpha_ij h_j

With a penalty p > 0 a row with no key gives softmax(e_i - p) over every position instead of zeros. In exact arithmetic
that is softmax(e_i); Keras computes it with p = 1e9, whose rounding levels the energies.

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
  count = ReduceMax <keepdims = 1> (keep_int, last_axis)
  some_key = Cast <to = 9> (count)
  no_key = Not (some_key)
  less = Constant <value_float : float = @penalty> ()
  less_like = CastLike (less, energy)
  lowered = Sub (energy, less_like)
  minus_infinity = Constant <value_float = -inf> ()
  never = CastLike (minus_infinity, energy)
  otherwise = Where (no_key, lowered, never)
  masked = Where (mask, energy, otherwise)
  softmax = Softmax <axis = -1> (masked)
  zero = Constant <value_float = 0.0> ()
  nothing = CastLike (zero, energy)
  penalised = Greater (less_like, nothing)
  averaged = And (no_key, penalised)
  shown = Or (mask, averaged)
  weights = Where (shown, softmax, nothing)
  context = MatMul (weights, values)
""",
    attributes={"penalty": 0.0},
    paper="https://arxiv.org/abs/1409.0473",
)
