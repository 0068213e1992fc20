"""Functions of torch that run as other functions while a module of the user is exported.

Torch's own rules for them fix an axis or give another result than torch itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edge_attn.export import recurrent


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return torch's scaled dot-product attention with any number of leading axes; a row without a key gives zeros.

    Args:
        query: (..., tgt, size).
        key: (..., src, size).
        value: (..., src, value).
        attn_mask: bool, True = attend; or added to the energies; broadcast to (..., tgt, src).
        dropout_p: probability of dropout; not replaced unless 0.
        is_causal: attend to earlier positions only.
        scale: factor of the energies; None is 1 / sqrt(size).
        enable_gqa: keys and values have fewer heads than the query.
    """
    if dropout_p:
        raise NotImplementedError("attention with dropout")
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    energy = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.arange(key.shape[-2]) <= torch.arange(query.shape[-2])[:, None]
    if attn_mask is None:
        return energy.softmax(-1) @ value
    is_bool = attn_mask.dtype == torch.bool
    energy = energy.masked_fill(~attn_mask, float("-inf")) if is_bool else energy + attn_mask
    no_key = (energy == float("-inf")).all(-1, keepdim=True)
    return energy.softmax(-1).masked_fill(no_key, 0.0) @ value


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch.gru: recurrent.layers("gru"),
    torch.lstm: recurrent.layers("lstm"),
    torch.rnn_tanh: recurrent.layers("rnn_tanh"),
    torch.rnn_relu: recurrent.layers("rnn_relu"),
    torch._pack_padded_sequence: recurrent.pack,
    torch._pad_packed_sequence: recurrent.unpack,
    functional.scaled_dot_product_attention: dot_product_attention,
}


class _Replace(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACEMENTS.get(function, function)(*args, **(kwargs or {}))


@contextmanager
def replaced() -> Iterator[None]:
    """Run the functions of REPLACEMENTS as their replacements, in this thread."""
    with _Replace(), recurrent.unchecked():
        yield
