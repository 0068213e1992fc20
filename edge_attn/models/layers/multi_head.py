"""Multi-head dot attention: a row of ATTENTIONS, and the self-attention of a Transformer with its cache of past keys.

Equation and paper: edge_attn/ops/multi_head.py. No projection has a bias, so the output of a row with no key is zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_attn.errors import ConfigError
from edge_attn.models.interface import Memory, State
from edge_attn.models.layers import state_buffer, torch_ops
from edge_attn.models.layers.attention import Attention, AttentionOptions
from edge_attn.models.layers.normalizers import context_and_weights
from edge_attn.ops import multi_head as op


def _multi_head(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, heads: int, scale: float, causal: int
) -> tuple[Tensor, Tensor]:
    tgt, src = query.shape[1], keys.shape[1]
    # query (batch, heads, tgt, size), keys and values (batch, heads, src, size)
    query, keys, values = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, keys, values))
    keep = mask[:, None, None, :]
    if causal:
        key_position = torch.arange(src, device=mask.device)
        query_position = torch.arange(tgt, device=mask.device) + (src - tgt)
        keep = keep & (key_position <= query_position[:, None])
    weights = torch_ops.masked_softmax(scale * (query @ keys.transpose(2, 3)), keep)
    return (weights @ values).transpose(1, 2).flatten(2), weights


multi_head_dot_attention = torch_ops.register(op.OP, _multi_head)


def _scale(size: int, heads: int) -> float:
    """Return 1 / sqrt(size of one head).

    Raises:
        ConfigError: `size` is not divisible by `heads`.
    """
    if size % heads:
        raise ConfigError(f"heads must divide attention_size, got {heads} heads and attention_size {size}")
    return 1.0 / math.sqrt(size // heads)


class MultiHead(Attention):
    """Cross attention, c = W_o [heads of W_q s, W_k h, W_v h]. Its weights are the mean over heads."""

    has_energy = False

    def __init__(self, query_size: int, value_size: int, attention_size: int, heads: int) -> None:
        """Build the layer.

        Args:
            query_size: size of the decoder's states.
            value_size: size of the encoder's outputs.
            attention_size: size of all heads together.
            heads: number of heads.

        Raises:
            ConfigError: attention_size is not divisible by heads.
        """
        super().__init__()
        self.heads, self.scale = heads, _scale(attention_size, heads)
        self.query = nn.Linear(query_size, attention_size, bias=False)
        self.keys = nn.Linear(value_size, attention_size, bias=False)
        self.values = nn.Linear(value_size, attention_size, bias=False)
        self.output = nn.Linear(attention_size, value_size, bias=False)

    @classmethod
    def from_options(cls, options: AttentionOptions) -> MultiHead:
        return cls(options.query_size, options.value_size, options.attention_size, options.heads)

    def prepare(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        return {"keys": self.keys(values), "values": self.values(values), "mask": mask}

    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        context, weights = multi_head_dot_attention(
            self.query(query), memory["keys"], memory["values"], memory["mask"], self.heads, self.scale, 0
        )
        return self.output(context), weights.mean(1)

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        if self.normalizer == "softmax":
            return self.attend(query, memory)
        query, keys, values = map(self._rows, (self.query(query), memory["keys"], memory["values"]))
        mask = memory["mask"][:, None, :].expand(-1, self.heads, -1).flatten(0, 1)
        energy = self.scale * (query @ keys.transpose(1, 2))  # (batch * heads, tgt, src)
        context, weights = context_and_weights(energy, values, mask, self.normalizer)
        context, weights = (x.reshape(-1, self.heads, *x.shape[1:]) for x in (context, weights))
        return self.output(context.transpose(1, 2).flatten(2)), weights.mean(1)

    def _rows(self, x: Tensor) -> Tensor:
        """Return x (batch, n, heads * size) as (batch * heads, n, size)."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2).flatten(0, 1)

    def project_values(self, memory: Memory, weight: Tensor) -> Memory | None:
        """Return None, because W_o is applied between the values and the context."""
        return None


class SelfAttention(nn.Module):
    """Self-attention of a sequence: over all positions at once, or one position at a time with a cache.

    Shapes:
        x (batch, src, size), mask (batch, src) -> output (batch, src, size), weights (batch, heads, src, src)
        step: x (batch, beam, size), keys and values (batch, beam, slots, size), count (batch, beam, 1) int64
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, _scale(size, heads)
        self.input = nn.Linear(size, 3 * size, bias=False)
        self.output = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor, mask: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
        """Return output and weights; with `causal` no position attends to a later one."""
        query, keys, values = self.input(x).chunk(3, -1)
        context, weights = multi_head_dot_attention(query, keys, values, mask, self.heads, self.scale, int(causal))
        return self.output(context), weights

    def start(self, batch: int, slots: int) -> State:
        """Return an empty cache; a position attends to itself and to the `slots` - 1 positions before it."""
        empty = self.output.weight.new_zeros(batch, 1, slots, self.output.in_features)
        return {"keys": empty, "values": empty, "count": empty.new_zeros(batch, 1, 1, dtype=torch.long)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the output (batch, beam, size) of the next position, and the next state."""
        query, key, value = self.input(x).chunk(3, -1)
        keys, values = state_buffer.append(state["keys"], key), state_buffer.append(state["values"], value)
        count = state["count"] + 1
        filled = state_buffer.filled_slots(count, keys)
        rows = map(state_buffer.flatten_beams, (query[:, :, None], keys, values, filled))
        context, _ = multi_head_dot_attention(*rows, self.heads, self.scale, 0)
        output: Tensor = self.output(context.reshape(x.shape))
        return output, {"keys": keys, "values": values, "count": count}
