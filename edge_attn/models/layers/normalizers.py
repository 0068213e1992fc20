"""Functions from the energies of any score to attention weights: softmax or sparsemax."""

from __future__ import annotations

from torch import Tensor

from edge_attn.config.validation import one_of
from edge_attn.models.layers import torch_ops
from edge_attn.ops import softmax_attention as softmax_op
from edge_attn.ops import sparsemax_attention as sparsemax_op

NORMALIZERS = ("softmax", "sparsemax")


def sparsemax(energy: Tensor, mask: Tensor) -> Tensor:
    """Return the sparsemax over the last axis where `mask` is True; zeros for a row with no key.

    The gradient takes the support as constant (Martins and Astudillo 2016, equation 9).
    """
    no_key = ~mask.any(-1, keepdim=True)
    top = energy.detach().masked_fill(~(mask | no_key), float("-inf")).amax(-1, keepdim=True)
    z = (energy - top).masked_fill(~mask, 0.0)
    constant_z = z.detach()
    # larger (..., src, src): max(z_i - z_j, 0) with j in the row and i in the column
    larger = (constant_z.unsqueeze(-2) - constant_z.unsqueeze(-1)).clamp(min=0.0).masked_fill(~mask.unsqueeze(-2), 0.0)
    support = mask & (larger.sum(-1) < 1.0)
    size = support.sum(-1, keepdim=True).clamp(min=1)
    tau = (z.masked_fill(~support, 0.0).sum(-1, keepdim=True) - 1.0) / size
    return (z - tau).clamp(min=0.0).masked_fill(~support, 0.0)


def _softmax(energy: Tensor, values: Tensor, mask: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    if penalty:
        no_key = ~mask.any(-1, keepdim=True)
        weights = torch_ops.masked_softmax((energy - penalty).where(no_key, energy), mask | no_key)
    else:
        weights = torch_ops.masked_softmax(energy, mask)
    return weights @ values, weights


def _sparsemax(energy: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    weights = sparsemax(energy, mask)
    return weights @ values, weights


softmax_attention = torch_ops.register(softmax_op.OP, _softmax)
sparsemax_attention = torch_ops.register(sparsemax_op.OP, _sparsemax)


def per_query(mask: Tensor) -> Tensor:
    """Return a mask (batch, queries, src) from one of shape (batch, src) or (batch, queries, src)."""
    return mask[:, None, :] if mask.dim() == 2 else mask


def context_and_weights(energy: Tensor, values: Tensor, mask: Tensor, normalizer: str) -> tuple[Tensor, Tensor]:
    """Return context (batch, tgt, value) and weights (batch, tgt, src).

    Args:
        energy: energies (batch, tgt, src).
        values: values (batch, src, value).
        mask: True for a real key, (batch, src) or (batch, queries, src) with queries = tgt or 1.
        normalizer: a name in NORMALIZERS.

    Raises:
        ConfigError: there is no such normalizer.
    """
    one_of("normalizer", normalizer, NORMALIZERS)
    if normalizer == "softmax":
        context, weights = softmax_attention(energy, values, per_query(mask), 0.0)
    else:
        context, weights = sparsemax_attention(energy, values, per_query(mask))
    return context, weights
