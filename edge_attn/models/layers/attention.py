"""Attention layers, one row of ATTENTIONS each. They contain weights and no state of a sentence.

`prepare` computes once per sentence what every step needs (the memory). `step` attends for one target position; an
attention with a recurrent state takes it and returns the next one. `forward` is for attentions without a state.

Shapes:
    query (batch, tgt, query_size), values (batch, src, value_size), mask (batch, src), states (batch, tgt, ...)
    -> context (batch, tgt, value_size), weights (batch, tgt, src)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_attn.models.interface import Memory, State
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.normalizers import context_and_weights


@dataclass(frozen=True)
class AttentionOptions:
    """Sizes and options from which a model family builds an attention; each kind uses those that it needs."""

    query_size: int
    value_size: int
    attention_size: int
    """Size of the energy's hidden layer; the size of all heads together for multi-head attention."""
    normalizer: str = "softmax"
    heads: int = 4
    """Heads of multi-head attention."""
    positions: int = 100
    """Source positions of location attention."""
    window: int = 0
    """D of local attention."""
    hard_training: str = "straight-through"
    """Training of hard attention: a name in TRAININGS."""


class Attention(nn.Module):
    """Soft, global attention. A subclass defines its energy and, if there is an op for it, `attend`."""

    has_energy = True
    """False for a kind without an energy for each source position; AttentionWrapper needs one."""
    normalizer = "softmax"
    """Function from energies to weights: a name in NORMALIZERS."""

    @classmethod
    def from_options(cls, options: AttentionOptions) -> Attention:
        """Build the attention from the options that this kind uses."""
        return cls(options.query_size, options.value_size, options.attention_size)

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        """Return the memory of a sentence; `summary` (batch, value_size) is the encoder's last state."""
        return {"values": values, "mask": mask}

    def start(self, memory: Memory) -> State:
        """Return the state before the first step, each tensor (batch, 1, ...)."""
        return {}

    def energy(self, query: Tensor, memory: Memory) -> Tensor:
        """Return e (batch, tgt, src) if `has_energy`."""
        raise NotImplementedError

    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return context and weights with softmax, by one op where this kind has one."""
        return context_and_weights(self.energy(query, memory), memory["values"], memory["mask"], "softmax")

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Return context and weights; weights is None if the kind has none."""
        if self.normalizer == "softmax":
            return self.attend(query, memory)
        return context_and_weights(self.energy(query, memory), memory["values"], memory["mask"], self.normalizer)

    def step(self, query: Tensor, memory: Memory, state: State) -> tuple[Tensor, Tensor | None, State]:
        """Return context, weights and the next state."""
        return (*self(query, memory), state)

    def project_values(self, memory: Memory, weight: Tensor) -> Memory | None:
        """Return a memory whose contexts are multiplied by `weight` (size, value_size); None if this is impossible.

        A context is a weighted sum of values, so a product of each step's context becomes one product per sentence.
        """
        keys = memory.get("keys", memory["values"])  # without keys the unprojected values are the keys
        return {**memory, "keys": keys, "values": nn.functional.linear(memory["values"], weight)}


class AttentionWrapper(Attention):
    """Attention over the energies of `score`, whose memory it uses."""

    def __init__(self, score: Attention) -> None:
        super().__init__()
        self.score = score

    @classmethod
    def wrap(cls, score: Attention, options: AttentionOptions) -> AttentionWrapper:
        """Build the wrapper around `score` from the options that this kind uses."""
        return cls(score)

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        return self.score.prepare(values, mask, summary)

    def energy(self, query: Tensor, memory: Memory) -> Tensor:
        return self.score.energy(query, memory)

    def project_values(self, memory: Memory, weight: Tensor) -> Memory | None:
        return self.score.project_values(memory, weight)


class Additive(Attention):
    """e = v^T tanh(W s + U h + b) (Bahdanau et al. 2015, A.1.2); Luong's concat is the same with [W U] one matrix."""

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_size, attention_size, bias=False)
        self.keys = nn.Linear(value_size, attention_size)
        self.v = nn.Parameter(torch.empty(attention_size).uniform_(-1, 1) / math.sqrt(attention_size))

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        return {"keys": self.keys(values), "values": values, "mask": mask}

    def energy(self, query: Tensor, memory: Memory, feature: Tensor | None = None) -> Tensor:
        """Return e (batch, tgt, src); `feature` (batch, tgt, src, attention_size) is added inside the tanh."""
        inner = self.query(query)[:, :, None, :] + memory["keys"][:, None, :, :]  # (batch, tgt, src, attention_size)
        return torch.tanh(inner if feature is None else inner + feature) @ self.v

    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        context, weights = torch_ops.additive_attention(
            self.query(query), memory["keys"], memory["values"], memory["mask"], self.v
        )
        return context, weights


class Dot(Attention):
    """e = s^T h (Luong et al. 2015, equation 8, dot)."""

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__()
        self.scale = 1.0

    def energy(self, query: Tensor, memory: Memory) -> Tensor:
        keys = memory.get("keys", memory["values"])
        return self.scale * (query @ keys.transpose(1, 2))

    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
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


class NoAttention(Attention):
    """No attention: the context of every step is the encoder's last state (Cho et al. 2014)."""

    has_energy = False

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__()

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        return {"summary": summary}

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        return memory["summary"][:, None, :].expand(-1, query.shape[1], -1), None

    def project_values(self, memory: Memory, weight: Tensor) -> Memory | None:
        return {"summary": nn.functional.linear(memory["summary"], weight)}
