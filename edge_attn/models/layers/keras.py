"""Keras' `Attention` and `AdditiveAttention` (https://keras.io/api/layers/attention_layers), also rows of ATTENTIONS.

    dot:      e_ij = scale * q_i^T k_j
    concat:   e_ij = concat_score_weight * sum_d tanh(scale * (q_i + k_j))_d
    additive: e_ij = sum_d scale_d tanh(q_i + k_j)_d

Without a scale it is 1. The context is zero where the query's mask is False; the weights are not.

Shapes:
    query (batch, tgt, size), value (batch, src, value_size), key (batch, src, size), query_mask (batch, tgt),
    value_mask (batch, src) -> context (batch, tgt, value_size), weights (batch, tgt, src)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from edge_attn.config.validation import one_of
from edge_attn.errors import ConfigError, InputError
from edge_attn.models.interface import Memory
from edge_attn.models.layers.attention import Attention
from edge_attn.models.layers.normalizers import softmax_attention

PENALTY = 1e9
"""Keras subtracts it from the energies of masked keys, so a query with no key attends to all of them."""


class KerasLayer(nn.Module, ABC):
    """Attention of both Keras layers over their energies."""

    def __init__(self, keras_empty_rows: bool) -> None:
        super().__init__()
        self.penalty = PENALTY if keras_empty_rows else 0.0
        """Penalty of masked keys; with 0, a query with no key has weights and context 0, as in all other layers."""

    @abstractmethod
    def energy(self, query: Tensor, key: Tensor) -> Tensor:
        """Return e (batch, tgt, src)."""

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        causal: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return context (batch, tgt, value_size) and weights (batch, tgt, src), as with `return_attention_scores`.

        Args:
            query: queries (batch, tgt, size).
            value: values (batch, src, value_size).
            key: keys (batch, src, size); the values if None.
            query_mask: True for a real query (batch, tgt).
            value_mask: True for a real key (batch, src).
            causal: a query attends to no key after its own position.

        Raises:
            InputError: a mask has another type or number of axes.
        """
        for name, mask in (("query_mask", query_mask), ("value_mask", value_mask)):
            if mask is not None and (mask.dtype != torch.bool or mask.ndim != 2):
                raise InputError(
                    f"{name} must be bool of shape (batch, length), True = a real token, "
                    f"got {mask.dtype} of shape {tuple(mask.shape)}"
                )
        energy = self.energy(query, value if key is None else key)
        if value_mask is None:
            keep = torch.ones(value.shape[0], 1, value.shape[1], dtype=torch.bool, device=value.device)
        else:
            keep = value_mask[:, None, :]
        if causal:
            key_position = torch.arange(value.shape[1], device=value.device)
            query_position = torch.arange(query.shape[1], device=value.device)
            keep = keep & (key_position <= query_position[:, None])  # (batch or 1, tgt, src)
        context, weights = softmax_attention(energy, value, keep, self.penalty)
        if query_mask is not None:
            context = context.masked_fill(~query_mask[:, :, None], 0.0)
        return context, weights


class KerasAttention(KerasLayer):
    """Layer `keras.layers.Attention`."""

    def __init__(self, use_scale: bool = False, score_mode: str = "dot", keras_empty_rows: bool = False) -> None:
        super().__init__(keras_empty_rows)
        one_of("score_mode", score_mode, ("dot", "concat"))
        self.scale = nn.Parameter(torch.ones(())) if use_scale else None
        self.concat_score_weight = nn.Parameter(torch.ones(())) if score_mode == "concat" else None

    def energy(self, query: Tensor, key: Tensor) -> Tensor:
        if self.concat_score_weight is None:
            energy = query @ key.transpose(1, 2)
            return energy if self.scale is None else energy * self.scale
        hidden = query[:, :, None, :] + key[:, None, :, :]
        hidden = torch.tanh(hidden if self.scale is None else hidden * self.scale)
        return self.concat_score_weight * hidden.sum(-1)


class KerasAdditiveAttention(KerasLayer):
    """Layer `keras.layers.AdditiveAttention`; `size` is the size of the queries and the keys."""

    def __init__(self, size: int, use_scale: bool = True, keras_empty_rows: bool = False) -> None:
        super().__init__(keras_empty_rows)
        self.scale = nn.Parameter(torch.empty(size).uniform_(-1, 1) * math.sqrt(3 / size)) if use_scale else None

    def energy(self, query: Tensor, key: Tensor) -> Tensor:
        hidden = torch.tanh(query[:, :, None, :] + key[:, None, :, :])
        return hidden.sum(-1) if self.scale is None else hidden @ self.scale


class KerasScore(Attention):
    """A row of ATTENTIONS with a Keras layer. It has no projection, so queries and values have the same size."""

    layer: KerasLayer

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__()
        if query_size != value_size:
            raise ConfigError(
                f"Keras' attention needs decoder_hidden = 2 * encoder_hidden, got a query of size {query_size} and "
                f"values of size {value_size}; use 'general' or 'additive' for other sizes"
            )

    def energy(self, query: Tensor, memory: Memory) -> Tensor:
        return self.layer.energy(query, memory.get("keys", memory["values"]))


class KerasDot(KerasScore):
    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__(query_size, value_size, attention_size)
        self.layer = KerasAttention(use_scale=True)


class KerasConcat(KerasScore):
    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__(query_size, value_size, attention_size)
        self.layer = KerasAttention(use_scale=True, score_mode="concat")


class KerasAdditive(KerasScore):
    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__(query_size, value_size, attention_size)
        self.layer = KerasAdditiveAttention(query_size)
