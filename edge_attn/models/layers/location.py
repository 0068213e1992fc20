"""Location-based attention: a row of ATTENTIONS. Equation, paper and shapes: edge_attn/ops/location.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_attn.models.interface import Memory
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.attention import Attention, AttentionOptions
from edge_attn.ops import location


def _rows(w: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row of W for each source position (src, query_size), and which positions have one (src)."""
    position = torch.arange(values.shape[1], device=values.device)
    return w[position.clamp(max=w.shape[0] - 1)], position < w.shape[0]


def _location(query: Tensor, w: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    rows, has_row = _rows(w, values)
    weights = torch_ops.masked_softmax(query @ rows.T, (mask & has_row)[:, None, :])
    return weights @ values, weights


location_attention = torch_ops.register(location.OP, _location)


class Location(Attention):
    """e_j = (W s)_j: the weights depend on the decoder's state alone, not on the source words."""

    def __init__(self, query_size: int, value_size: int, attention_size: int, positions: int = 100) -> None:
        """Build the layer.

        Args:
            query_size: size of the decoder's states.
            value_size: size of the encoder's outputs.
            attention_size: not used.
            positions: number of source positions with a row of W.
        """
        super().__init__()
        self.w = nn.Parameter(torch.empty(positions, query_size).uniform_(-1, 1) / math.sqrt(query_size))

    @classmethod
    def from_options(cls, options: AttentionOptions) -> Location:
        return cls(options.query_size, options.value_size, options.attention_size, options.positions)

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        """Return the memory, whose mask is False past the last row of W too."""
        _, has_row = _rows(self.w, values)
        return {"values": values, "mask": mask & has_row}

    def energy(self, query: Tensor, memory: Memory) -> Tensor:
        rows, _ = _rows(self.w, memory["values"])
        return query @ rows.T

    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        context, weights = location_attention(query, self.w, memory["values"], memory["mask"])
        return context, weights

    def project_values(self, memory: Memory, weight: Tensor) -> Memory | None:
        return {**memory, "values": nn.functional.linear(memory["values"], weight)}
