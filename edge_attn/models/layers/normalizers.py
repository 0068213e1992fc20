"""From energies to weights: softmax or sparsemax, over the energies of any score."""

from __future__ import annotations

from torch import Tensor

from edge_attn.config.validation import one_of
from edge_attn.models.layers import torch_ops
from edge_attn.ops import softmax_attention as softmax_op
from edge_attn.ops import sparsemax_attention as sparsemax_op

NORMALIZERS = ("softmax", "sparsemax")


def sparsemax(energy: Tensor, mask: Tensor) -> Tensor:
    """Sparsemax over the last axis where `mask` is True; a row with no key gives zeros.

    The gradient is that of the support as it stands (Martins and Astudillo 2016, equation 9).
    """
    none = ~mask.any(-1, keepdim=True)
    top = energy.detach().masked_fill(~(mask | none), float("-inf")).amax(-1, keepdim=True)
    z = (energy - top).masked_fill(~mask, 0.0)
    fixed = z.detach()
    larger = (fixed.unsqueeze(-2) - fixed.unsqueeze(-1)).clamp(min=0.0).masked_fill(~mask.unsqueeze(-2), 0.0)
    support = mask & (larger.sum(-1) < 1.0)
    size = support.sum(-1, keepdim=True).clamp(min=1)
    tau = (z.masked_fill(~support, 0.0).sum(-1, keepdim=True) - 1.0) / size
    return (z - tau).clamp(min=0.0).masked_fill(~support, 0.0)


def _softmax(energy: Tensor, values: Tensor, mask: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    if penalty:
        none = ~mask.any(-1, keepdim=True)
        weights = torch_ops.masked_softmax((energy - penalty).where(none, energy), mask | none)
    else:
        weights = torch_ops.masked_softmax(energy, mask)
    return weights @ values, weights


def _sparsemax(energy: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    weights = sparsemax(energy, mask)
    return weights @ values, weights


softmax_attention = torch_ops.register(softmax_op.OP, _softmax)
sparsemax_attention = torch_ops.register(sparsemax_op.OP, _sparsemax)


def per_query(mask: Tensor) -> Tensor:
    """(batch, src) or (batch, queries, src) -> (batch, queries, src)."""
    return mask[:, None, :] if mask.dim() == 2 else mask


def attend(energy: Tensor, values: Tensor, mask: Tensor, normalizer: str) -> tuple[Tensor, Tensor]:
    """energy (batch, tgt, src), values (batch, src, value), mask (batch, src) or (batch, queries, src)
    -> context (batch, tgt, value), weights (batch, tgt, src).

    Raises:
        ConfigError: there is no such normalizer.
    """
    one_of("normalizer", normalizer, NORMALIZERS)
    if normalizer == "softmax":
        context, weights = softmax_attention(energy, values, per_query(mask), 0.0)
    else:
        context, weights = sparsemax_attention(energy, values, per_query(mask))
    return context, weights
