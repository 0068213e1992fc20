"""Local attention over the energies of any score (Luong et al. 2015, https://arxiv.org/abs/1508.04025, section 3.2).

    alpha_ij = normalise(e_ij over the real keys with |j - p_i| <= D) * exp(-(j - p_i)^2 / (2 sigma^2)),   sigma = D / 2
    c_i = sum_j alpha_ij h_j

where positions count from 0. The Gaussian (equation 10) is local-p's and is not renormalised; local-m has none. What of
the window lies past the sentence's edges is ignored; where all of it does, weights and context are 0.

Shapes:
    energy (batch, tgt, src), position (batch, tgt, 1), values (batch, src, value),
    mask (batch, queries, src), queries = tgt or 1
    -> context (batch, tgt, value), weights (batch, tgt, src)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_attn.ops import KEPT_SOFTMAX, Op, masked_softmax
from edge_attn.ops.sparsemax_attention import sparsemax, sparsemax_body


def _local(name: str, normalise: Callable[[np.ndarray, np.ndarray], np.ndarray], normalised: str) -> Op:
    """`normalised`: statements from energy and keep to alpha."""

    def oracle(
        energy: np.ndarray,
        position: np.ndarray,
        values: np.ndarray,
        mask: np.ndarray,
        *,
        window: int = 10,
        gaussian: int = 0,
    ) -> tuple[np.ndarray, ...]:
        energy, position, values = (np.asarray(x, np.float64) for x in (energy, position, values))
        offset = np.arange(energy.shape[-1]) - position
        weights = normalise(energy, mask & (np.abs(offset) <= window))
        if gaussian:
            sigma = window / 2
            weights = weights * np.exp(-(offset**2) / (2 * sigma**2))
        return weights @ values, weights

    return Op(
        name=name,
        inputs={"energy": "T", "position": "T", "values": "T", "mask": "tensor(bool)"},
        outputs=("context", "weights"),
        oracle=oracle,
        body=f"""
  length = Shape <start = -1> (energy)
  end = Squeeze (length)
  first = Constant <value_int = 0> ()
  each = Constant <value_int = 1> ()
  places = Range (first, end, each)
  places_like = CastLike (places, energy)
  offset = Sub (places_like, position)
  distance = Abs (offset)
  width = Constant <value_int : int = @window> ()
  width_like = CastLike (width, energy)
  inside = LessOrEqual (distance, width_like)
  keep = And (mask, inside)
{normalised}
  offset_inside = Where (inside, offset, nothing)
  share_of_window = Div (offset_inside, width_like)
  squared = Mul (share_of_window, share_of_window)
  bell = Constant <value_int : int = @gaussian> ()
  bell_like = CastLike (bell, energy)
  minus_two = Constant <value_float = -2.0> ()
  minus_two_like = CastLike (minus_two, energy)
  steepness = Mul (bell_like, minus_two_like)
  exponent = Mul (squared, steepness)
  factor = Exp (exponent)
  weights = Mul (alpha, factor)
  context = MatMul (weights, values)
""",
        attributes={"window": 10, "gaussian": 0},
        paper="https://arxiv.org/abs/1508.04025",
    )


OP = _local("LocalAttention", masked_softmax, KEPT_SOFTMAX.replace("weights =", "alpha ="))
SPARSE_OP = _local("SparseLocalAttention", sparsemax, sparsemax_body("keep", "alpha"))
