"""Location-based attention: a row of ATTENTIONS. Equation, paper and shapes: edge_attn/ops/location.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.attention import Attention, Memory
from edge_attn.ops import location


def _rows(w: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The row of W for each source position (src, query), and which of them W has (src)."""
    position = torch.arange(values.shape[1], device=values.device)
    return w[position.clamp(max=w.shape[0] - 1)], position < w.shape[0]


def _location(query: Tensor, w: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    rows, known = _rows(w, values)
    weights = torch_ops.masked_softmax(query @ rows.T, (mask & known)[:, None, :])
    return weights @ values, weights


location_attention = torch_ops.register(location.OP, _location)


class Location(Attention):
    """e_j = (W s)_j: what is attended to depends on how far the target is, not on what the source says."""

    options = ("positions",)

    def __init__(self, query_size: int, value_size: int, attention_size: int, positions: int = 100) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(positions, query_size).uniform_(-1, 1) / math.sqrt(query_size))

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        """A position past the last row of W is masked for whatever is made of its energies."""
        _, known = _rows(self.w, values)
        return {"values": values, "mask": mask & known}

    def energy(self, query: Tensor, memory: Memory) -> Tensor:
        rows, _ = _rows(self.w, memory["values"])
        return query @ rows.T

    def whole(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        context, weights = location_attention(query, self.w, memory["values"], memory["mask"])
        return context, weights

    def fold(self, memory: Memory, weight: Tensor) -> Memory | None:
        return {**memory, "values": nn.functional.linear(memory["values"], weight)}
