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
    """Return the sparsemax over the last axis where `mask` is True, in float64; zeros for a row with no key."""
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


def sparsemax_body(keep: str, output: str) -> str:
    """Return statements from energy and `keep` (bool) to `output`: sparsemax over the last axis where `keep`, or 0."""
    return f"""
  keep_int = Cast <to = 6> ({keep})
  last_axis = Constant <value_ints = [-1]> ()
  has_key_int = ReduceMax <keepdims = 1> (keep_int, last_axis)
  has_key = Cast <to = 9> (has_key_int)
  no_key = Not (has_key)
  allowed = Or ({keep}, no_key)
  neg_inf_float = Constant <value_float = -inf> ()
  neg_inf = CastLike (neg_inf_float, energy)
  real = Where (allowed, energy, neg_inf)
  top = ReduceMax <keepdims = 1> (real, last_axis)
  below = Sub (energy, top)
  zero_float = Constant <value_float = 0.0> ()
  zero = CastLike (zero_float, energy)
  z = Where ({keep}, below, zero)
  row_axis = Constant <value_ints = [-2]> ()
  z_row = Unsqueeze (z, row_axis)
  z_column = Unsqueeze (z, last_axis)
  keep_row = Unsqueeze ({keep}, row_axis)
  difference = Sub (z_row, z_column)
  larger = Relu (difference)
  larger_real = Where (keep_row, larger, zero)
  gap = ReduceSum <keepdims = 0> (larger_real, last_axis)
  one_float = Constant <value_float = 1.0> ()
  one = CastLike (one_float, energy)
  near = Less (gap, one)
  support = And ({keep}, near)
  z_support = Where (support, z, zero)
  total = ReduceSum <keepdims = 1> (z_support, last_axis)
  ones = Where (support, one, zero)
  size = ReduceSum <keepdims = 1> (ones, last_axis)
  size_or_one = Max (size, one)
  excess = Sub (total, one)
  tau = Div (excess, size_or_one)
  z_minus_tau = Sub (z, tau)
  positive = Relu (z_minus_tau)
  {output} = Where (support, positive, zero)"""


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
