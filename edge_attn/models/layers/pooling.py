"""Attention pooling: a layer for classifiers, and a row of ATTENTIONS. Equation and paper: edge_attn/ops/pooling.py.

Shapes:
    values (batch, src, value_size), mask (batch, src) -> context (batch, value_size), weights (batch, src)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_attn.models.interface import Memory
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.attention import Attention
from edge_attn.models.layers.normalizers import context_and_weights
from edge_attn.ops import pooling


def _pooling(values: Tensor, mask: Tensor, w: Tensor, b: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    energy = torch.tanh(nn.functional.linear(values, w, b)) @ u
    weights = torch_ops.masked_softmax(energy, mask)
    return (weights[:, None, :] @ values).squeeze(1), weights


attention_pooling = torch_ops.register(pooling.OP, _pooling)


class Pooling(nn.Module):
    """Weighted sum of the elements of a sequence; zero for an empty one."""

    def __init__(self, value_size: int, attention_size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(value_size, attention_size)
        self.u = nn.Parameter(torch.empty(attention_size).uniform_(-1, 1) / math.sqrt(attention_size))

    def energy(self, values: Tensor) -> Tensor:
        """Return e (batch, src)."""
        energy: Tensor = torch.tanh(self.hidden(values)) @ self.u
        return energy

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        context, weights = attention_pooling(values, mask, self.hidden.weight, self.hidden.bias, self.u)
        return context, weights


class PooledAttention(Attention):
    """Attention whose context is the pooled source at every step. It is computed once per sentence."""

    has_energy = False

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__()
        self.pooling = Pooling(value_size, attention_size)

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        if self.normalizer == "softmax":
            context, weights = self.pooling(values, mask)
        else:
            energy = self.pooling.energy(values)[:, None, :]
            context, weights = (x[:, 0] for x in context_and_weights(energy, values, mask, self.normalizer))
        return {"summary": context, "weights": weights}

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Return the same context and weights for each target position."""
        context, weights = (memory[name][:, None, :].expand(-1, query.shape[1], -1) for name in ("summary", "weights"))
        return context, weights

    def project_values(self, memory: Memory, weight: Tensor) -> Memory | None:
        return {**memory, "summary": nn.functional.linear(memory["summary"], weight)}
