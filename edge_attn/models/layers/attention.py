"""Attention modules: a row of ATTENTIONS each. They remember weights, never a sentence.

`prepare` computes once per sentence what every step needs (the memory); `step` is one step's attention over it, with
what the attention itself hands on from step to step (its state); `forward` is for those that hand on nothing.

Shapes:
    query (batch, tgt, query_size), values (batch, src, value_size), mask (batch, src), states (batch, tgt, ...)
    -> context (batch, tgt, value_size), weights (batch, tgt, src)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.errors import ConfigError
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.normalizers import attend
from edge_attn.registry import ATTENTION_WRAPPERS, ATTENTIONS, resolve

Memory = dict[str, Tensor]
State = dict[str, Tensor]


class Attention(nn.Module):
    """A soft, global attention: a child says its energy and, where it has one, the op that does the whole of it."""

    normalizer = "softmax"
    """From energies to weights: a name in NORMALIZERS."""
    options: tuple[str, ...] = ()
    """The keys of Seq2SeqConfig that its constructor takes beside the sizes."""

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        """`summary` (batch, value_size) is the encoder's last state."""
        return {"values": values, "mask": mask}

    def start(self, memory: Memory) -> State:
        """What it hands on before the first step, each (batch, 1, ...)."""
        return {}

    def energy(self, query: Tensor, memory: Memory) -> Tensor:
        """e (batch, tgt, src), of kinds that have one."""
        raise NotImplementedError  # none, pooling, multi-head: they never ask, and make_attention refuses what would

    def whole(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Energy, softmax and context: of a kind that has an op of its own for them, that op."""
        return attend(self.energy(query, memory), memory["values"], memory["mask"], "softmax")

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        if self.normalizer == "softmax":
            return self.whole(query, memory)
        return attend(self.energy(query, memory), memory["values"], memory["mask"], self.normalizer)

    def step(self, query: Tensor, memory: Memory, state: State) -> tuple[Tensor, Tensor | None, State]:
        return (*self(query, memory), state)

    def fold(self, memory: Memory, weight: Tensor) -> Memory | None:
        """The memory whose contexts come out multiplied by `weight` (size, value_size); None if there is none.

        A context is a sum of values, so what it is multiplied with at each step can be done once per sentence.
        """
        keys = memory.get("keys", memory["values"])  # the values themselves, before they are folded
        return {**memory, "keys": keys, "values": nn.functional.linear(memory["values"], weight)}


class AttentionWrapper(Attention):
    """What goes around an attention that has energies, `score`: its memory is that one's."""

    def __init__(self, score: Attention) -> None:
        super().__init__()
        self.score = score

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        return self.score.prepare(values, mask, summary)

    def energy(self, query: Tensor, memory: Memory) -> Tensor:
        return self.score.energy(query, memory)

    def fold(self, memory: Memory, weight: Tensor) -> Memory | None:
        return self.score.fold(memory, weight)


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
        """`feature` (batch, tgt, src, attention_size) joins what the tanh is taken of."""
        inner = self.query(query)[:, :, None, :] + memory["keys"][:, None, :, :]
        return torch.tanh(inner if feature is None else inner + feature) @ self.v

    def whole(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
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

    def whole(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
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
    """The context is the encoder's last state, the same at every step (Cho et al. 2014)."""

    def __init__(self, query_size: int, value_size: int, attention_size: int) -> None:
        super().__init__()

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        return {"summary": summary}

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        return memory["summary"][:, None, :].expand(-1, query.shape[1], -1), None

    def fold(self, memory: Memory, weight: Tensor) -> Memory | None:
        return {"summary": nn.functional.linear(memory["summary"], weight)}


def make_attention(config: Seq2SeqConfig, query_size: int, value_size: int) -> Attention:
    """The attention that `config` describes.

    Raises:
        ConfigError: it asks for what this kind cannot do.
    """
    given = {**vars(config), "query_size": query_size}

    def make(kind: type[Attention], *first: object) -> Attention:
        return kind(*first, **{name: given[name] for name in kind.options})

    kind = resolve("attention", ATTENTIONS, config.attention)
    made = make(kind, query_size, value_size, config.attention_size)
    made.normalizer = config.normalizer
    if made.normalizer != "softmax" and config.attention == "none":
        raise ConfigError(f"normalizer = {made.normalizer!r} needs an attention, got attention = 'none'")
    around = "coverage" if config.coverage else config.focus
    if around == "global":
        return made
    if kind.energy is Attention.energy:
        raise ConfigError(
            f"attention = {config.attention!r} has no energy for each source position, which {around} needs; "
            f"choose another attention"
        )
    return make(resolve("focus", ATTENTION_WRAPPERS, around), made)
