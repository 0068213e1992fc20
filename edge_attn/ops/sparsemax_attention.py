"""Sparsemax attention over the energies of any score (Martins and Astudillo 2016, https://arxiv.org/abs/1602.02068).

    alpha_i = sparsemax(e_i), the point of the probability simplex nearest to e_i,   c_i = sum_j alpha_ij h_j

    sparsemax_j(z) = max(z_j - tau, 0),   tau = (sum of z over the support - 1) / size of the support

Key j is in the support if and only if sum_i max(z_i - z_j, 0) < 1, which is the paper's 1 + k z_(k) > sum_(i<=k) z_(i)
without sorting. The oracle sorts, as the paper's algorithm 1 does.

Shapes:
    energy (batch, tgt, src), values (batch, src, value), mask (batch, queries, src), queries = tgt or 1
    -> context (batch, tgt, value), weights (batch, tgt, src)
"""

from __future__ import annotations

import numpy as np

from edge_attn.ops import Op


def sparsemax(energy: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Sparsemax over the last axis where `mask` is True, in float64; a row with no key gives zeros."""
    energy, mask = np.broadcast_arrays(np.asarray(energy, np.float64), mask)
    weights = np.zeros(energy.shape)
    for row in np.ndindex(energy.shape[:-1]):
        real = mask[row]
        if not real.any():
            continue
        z = energy[row][real] - energy[row][real].max()
        largest_first = np.sort(z)[::-1]
        sums = np.cumsum(largest_first)
        k = np.flatnonzero(1 + np.arange(1, len(z) + 1) * largest_first > sums)[-1] + 1
        weights[row][real] = np.maximum(z - (sums[k - 1] - 1) / k, 0)
    return weights


def sparsemax_body(keep: str, made: str) -> str:
    """energy, `keep` (bool) -> `made`: sparsemax over the last axis where `keep` is True, else 0."""
    return f"""
  keep_int = Cast <to = 6> ({keep})
  last_axis = Constant <value_ints = [-1]> ()
  count = ReduceMax <keepdims = 1> (keep_int, last_axis)
  some_key = Cast <to = 9> (count)
  no_key = Not (some_key)
  allowed = Or ({keep}, no_key)
  minus_infinity = Constant <value_float = -inf> ()
  never = CastLike (minus_infinity, energy)
  real = Where (allowed, energy, never)
  top = ReduceMax <keepdims = 1> (real, last_axis)
  below = Sub (energy, top)
  zero = Constant <value_float = 0.0> ()
  nothing = CastLike (zero, energy)
  z = Where ({keep}, below, nothing)
  row_axis = Constant <value_ints = [-2]> ()
  z_row = Unsqueeze (z, row_axis)
  z_column = Unsqueeze (z, last_axis)
  keep_row = Unsqueeze ({keep}, row_axis)
  difference = Sub (z_row, z_column)
  larger = Relu (difference)
  larger_real = Where (keep_row, larger, nothing)
  gap = ReduceSum <keepdims = 0> (larger_real, last_axis)
  one = Constant <value_float = 1.0> ()
  unit = CastLike (one, energy)
  near = Less (gap, unit)
  support = And ({keep}, near)
  z_support = Where (support, z, nothing)
  total = ReduceSum <keepdims = 1> (z_support, last_axis)
  ones = Where (support, unit, nothing)
  size = ReduceSum <keepdims = 1> (ones, last_axis)
  some_size = Max (size, unit)
  excess = Sub (total, unit)
  tau = Div (excess, some_size)
  share = Sub (z, tau)
  positive = Relu (share)
  {made} = Where (support, positive, nothing)"""


def oracle(energy: np.ndarray, values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    weights = sparsemax(energy, mask)
    return weights @ np.asarray(values, np.float64), weights


OP = Op(
    name="SparsemaxAttention",
    inputs={"energy": "T", "values": "T", "mask": "tensor(bool)"},
    outputs=("context", "weights"),
    oracle=oracle,
    body=f"""{sparsemax_body("mask", "weights")}
  context = MatMul (weights, values)
""",
    attributes={},
    paper="https://arxiv.org/abs/1602.02068",
)
