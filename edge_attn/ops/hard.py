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
  minus_infinity = Constant <value_float = -inf> ()
  never = CastLike (minus_infinity, energy)
  masked = Where (mask, energy, never)
  last_axis = Constant <value_ints = [-1]> ()
  top = ReduceMax <keepdims = 1> (masked, last_axis)
  equal = Equal (masked, top)
  largest = And (equal, mask)
  length = Shape <start = -1> (energy)
  length_int = Cast <to = 6> (length)
  end = Squeeze (length_int)
  zero_long = Constant <value_int = 0> ()
  one_long = Constant <value_int = 1> ()
  zero_int = Cast <to = 6> (zero_long)
  one_int = Cast <to = 6> (one_long)
  places = Range (zero_int, end, one_int)
  candidates = Where (largest, places, length_int)
  first = ReduceMin <keepdims = 1> (candidates, last_axis)
  chosen = Equal (places, first)
  one = Constant <value_float = 1.0> ()
  unit = CastLike (one, energy)
  zero = Constant <value_float = 0.0> ()
  nothing = CastLike (zero, energy)
  weights = Where (chosen, unit, nothing)
  context = MatMul (weights, values)
""",
    attributes={},
    paper="https://arxiv.org/abs/1502.03044",
)
