"""Hard attention over the energies of any score, as at inference (Xu et al. 2015, https://arxiv.org/abs/1502.03044).

    alpha_ij = 1 for the real key j of the largest e_ij, the first of equals, and 0 for all others,   c_i = h_j

Over e_ij + g_ij with Gumbel noise g the chosen key is a sample of softmax(e_i).

Shapes:
    energy (batch, tgt, src), values (batch, src, value), mask (batch, queries, src), queries = tgt or 1
    -> context (batch, tgt, value), weights (batch, tgt, src)
"""

from __future__ import annotations

import numpy as np

from edge_attn.ops import Op


def oracle(energy: np.ndarray, values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    energy, mask = np.broadcast_arrays(np.asarray(energy, np.float64), mask)
    chosen = np.argmax(np.where(mask, energy, -np.inf), axis=-1)[..., None]
    weights = ((np.arange(energy.shape[-1]) == chosen) & mask).astype(np.float64)
    return weights @ np.asarray(values, np.float64), weights


OP = Op(
    name="HardAttention",
    inputs={"energy": "T", "values": "T", "mask": "tensor(bool)"},
    outputs=("context", "weights"),
    oracle=oracle,
    body="""
  neg_inf_float = Constant <value_float = -inf> ()
  neg_inf = CastLike (neg_inf_float, energy)
  masked = Where (mask, energy, neg_inf)
  last_axis = Constant <value_ints = [-1]> ()
  top = ReduceMax <keepdims = 1> (masked, last_axis)
  equal = Equal (masked, top)
  largest = And (equal, mask)
  length = Shape <start = -1> (energy)
  length_int32 = Cast <to = 6> (length)
  end = Squeeze (length_int32)
  zero_int64 = Constant <value_int = 0> ()
  one_int64 = Constant <value_int = 1> ()
  zero_int32 = Cast <to = 6> (zero_int64)
  one_int32 = Cast <to = 6> (one_int64)
  positions = Range (zero_int32, end, one_int32)
  candidates = Where (largest, positions, length_int32)
  first = ReduceMin <keepdims = 1> (candidates, last_axis)
  chosen = Equal (positions, first)
  one_float = Constant <value_float = 1.0> ()
  one = CastLike (one_float, energy)
  zero_float = Constant <value_float = 0.0> ()
  zero = CastLike (zero_float, energy)
  weights = Where (chosen, one, zero)
  context = MatMul (weights, values)
""",
    attributes={},
    paper="https://arxiv.org/abs/1502.03044",
)
