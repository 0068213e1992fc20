"""Attention modules: a row of ATTENTIONS each. They remember weights, never a sentence.

`prepare` computes once per sentence what every step needs (the memory); `forward` is one step's attention over it.

Shapes:
    query (batch, tgt, query_size), values (batch, src, value_size), mask (batch, src)
    -> context (batch, tgt, value_size), weights (batch, tgt, src)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_attn.models import torch_ops

Memory = dict[str, Tensor]


class Additive(nn.Module):
    """e = v^T tanh(W s + U h + b) (Bahdanau et al. 2015, A.1.2); Luong's concat is the same with [W U] one matrix."""

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_size, attention_size, bias=False)
        self.keys = nn.Linear(value_size, attention_size)
        self.v = nn.Parameter(torch.empty(attention_size).uniform_(-1, 1) / math.sqrt(attention_size))

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        return {"keys": self.keys(values), "values": values, "mask": mask}

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        context, weights = torch_ops.additive_attention(
            self.query(query), memory["keys"], memory["values"], memory["mask"], self.v
        )
        return context, weights


class Dot(nn.Module):
    """e = s^T h (Luong et al. 2015, equation 8, dot)."""

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__()
        self.scale = 1.0

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        return {"values": values, "mask": mask}

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        keys = memory.get("keys", memory["values"])
        context, weights = torch_ops.dot_attention(query, keys, memory["values"], memory["mask"], self.scale)
        return context, weights


class Scaled(Dot):
    """e = s^T h / sqrt(size) (Vaswani et al. 2017, equation 1)."""

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__(query_size, value_size, attention_size)
        self.scale = 1.0 / math.sqrt(query_size)


class General(Dot):
    """e = s^T W h (Luong et al. 2015, equation 8, general); W h is computed once per sentence."""

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__(query_size, value_size, attention_size)
        self.keys = nn.Linear(value_size, query_size, bias=False)

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        return {"keys": self.keys(values), "values": values, "mask": mask}


class NoAttention(nn.Module):
    """The context is the encoder's last state, the same at every step (Cho et al. 2014)."""

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__()

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        return {"summary": summary}

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        return memory["summary"][:, None, :].expand(-1, query.shape[1], -1), None
