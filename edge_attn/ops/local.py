"""Local attention over the energies of any score (Luong et al. 2015, https://arxiv.org/abs/1508.04025, section 3.2).

    alpha_ij = normalize(e_ij over the real keys with |j - p_i| <= D) * exp(-(j - p_i)^2 / (2 sigma^2)),   sigma = D / 2
    c_i = sum_j alpha_ij h_j

where positions count from 0. local-p has the Gaussian (equation 10), which is not renormalized; local-m has none.
Window positions outside the sentence are ignored. If all of them are outside, weights and context are 0.

Shapes:
    energy (batch, tgt, src), position (batch, tgt, 1), values (batch, src, value),
    mask (batch, queries, src), queries = tgt or 1
    -> context (batch, tgt, value), weights (batch, tgt, src)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_attn.ops import Op, masked_softmax, softmax_body
from edge_attn.ops.sparsemax_attention import sparsemax, sparsemax_body


def _local(name: str, normalize: Callable[[np.ndarray, np.ndarray], np.ndarray], normalize_body: str) -> Op:
    """Return the op; `normalize_body` contains the statements from energy and keep to alpha."""

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
        weights = normalize(energy, mask & (np.abs(offset) <= window))
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
  step = Constant <value_int = 1> ()
  positions = Range (first, end, step)
  positions_like = CastLike (positions, energy)
  offset = Sub (positions_like, position)
  distance = Abs (offset)
  width = Constant <value_int : int = @window> ()
  width_like = CastLike (width, energy)
  inside = LessOrEqual (distance, width_like)
  keep = And (mask, inside)
{normalize_body}
  offset_inside = Where (inside, offset, zero)
  share_of_window = Div (offset_inside, width_like)
  squared = Mul (share_of_window, share_of_window)
  gaussian_int = Constant <value_int : int = @gaussian> ()
  gaussian_like = CastLike (gaussian_int, energy)
  minus_two = Constant <value_float = -2.0> ()
  minus_two_like = CastLike (minus_two, energy)
  steepness = Mul (gaussian_like, minus_two_like)
  exponent = Mul (squared, steepness)
  factor = Exp (exponent)
  weights = Mul (alpha, factor)
  context = MatMul (weights, values)
""",
        attributes={"window": 10, "gaussian": 0},
        paper="https://arxiv.org/abs/1508.04025",
    )


OP = _local("LocalAttention", masked_softmax, softmax_body("alpha"))
SPARSE_OP = _local("SparseLocalAttention", sparsemax, sparsemax_body("keep", "alpha"))
