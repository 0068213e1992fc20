"""Long short-term memory-networks (Cheng et al. 2016, https://arxiv.org/abs/1601.06733): an encoder's layer, a cell.

Equations: edge_attn/ops/intra_attention.py. An encoder-decoder of both, with the usual attention between them, is the
paper's shallow fusion.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.attention import State
from edge_attn.models.layers.recurrent import Cell, glorot, lstm_step
from edge_attn.models.layers.state_buffer import append, real, rows
from edge_attn.ops import intra_attention as op


def _intra_attention(
    x: Tensor, lengths: Tensor, w: Tensor, r: Tensor, b: Tensor, u: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tape grows with the steps, so it is nowhere masked."""
    time, hidden = x.shape[1], r.shape[1]
    blocks = [4 * hidden, len(u)]
    query, keys = x.new_zeros(len(x), len(u)), x.new_zeros(len(x), 0, len(u))
    states = x.new_zeros(len(x), 0, 2 * hidden)
    shares = []
    for t, now in enumerate(nn.functional.linear(x, w, b).unbind(1)):
        gates, asked = torch.split(now, blocks, -1)
        share = (torch.tanh(keys + (asked + query)[:, None]) @ v).softmax(-1)
        shares.append(nn.functional.pad(share, (0, time - t)))
        summary, cell = (share[:, None] @ states)[:, 0].chunk(2, -1)
        from_summary, query = torch.split(nn.functional.linear(summary, r), blocks, -1)
        h, c = lstm_step(gates + from_summary, cell)
        keys = torch.cat([keys, nn.functional.linear(h, u)[:, None]], 1)
        states = torch.cat([states, torch.cat([h, c], -1)[:, None]], 1)
    inside = (torch.arange(time, device=x.device) < lengths[:, None])[:, :, None]
    states = states.masked_fill(~inside, 0.0)
    ends = states[torch.arange(len(x), device=x.device), lengths.clamp(min=1) - 1]
    last, last_cell = (end.clone() for end in ends.chunk(2, -1))  # an op's outputs share no memory
    weights = torch.stack(shares, 1).masked_fill(~inside, 0.0)
    return states[..., :hidden].clone(), last, last_cell, weights


def _fake(x: Tensor, lengths: Tensor, w: Tensor, r: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    batch, time, hidden = x.shape[0], x.shape[1], r.shape[1]
    return tuple(x.new_empty(shape) for shape in ((batch, time, hidden), *((batch, hidden),) * 2, (batch, time, time)))


intra_attention = torch_ops.register(op.OP, _intra_attention, _fake)


def _v(*directions: int, size: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*directions, size).uniform_(-1, 1) / math.sqrt(size))


def _turned(x: Tensor, lengths: Tensor) -> Tensor:
    """Each row (batch, src, size) from its last element to its first, its padding left where it is."""
    positions, lengths = torch.arange(x.shape[1], device=x.device), lengths[:, None]
    index = torch.where(positions < lengths, lengths - 1 - positions, positions)
    return torch.gather(x, 1, index[:, :, None].expand(-1, -1, x.shape[2]))


class LstmnLayer(nn.Module):
    """One bidirectional layer; the second direction reads each row from its own last element. Its attn is its hidden.

    `cell` is the name of its row in LAYERS.

    Shapes:
        x (batch, src, size), lengths (batch) int64
        -> output (batch, src, 2 hidden), zero past a row's length; last hidden and cell states, each (batch, 2 hidden)
    """

    def __init__(self, cell: str, size: int, hidden: int) -> None:
        super().__init__()
        self.w, self.r = glorot(2, 5 * hidden, size, gates=5), glorot(2, 5 * hidden, hidden, gates=5)
        self.b = nn.Parameter(torch.zeros(2, 5 * hidden))
        self.u, self.v = glorot(2, hidden, hidden, gates=1), _v(2, size=hidden)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        first, second = (
            intra_attention(way, lengths, self.w[d], self.r[d], self.b[d], self.u[d], self.v[d])
            for d, way in enumerate((x, _turned(x, lengths)))
        )
        output = torch.cat([first[0], _turned(second[0], lengths)], -1)
        return output, tuple(torch.cat([first[i], second[i]], -1) for i in (1, 2))


class LstmnCell(Cell):
    """One step. The tape has `tape` slots: of more past states than that it forgets the oldest.

    What a decoder starts from is the tape's first entry. With the hidden states go their keys W_h h, made once; with
    the tape goes W_h~ h~, the summary's part of the next query.
    """

    ends = ("hidden", "cell")
    options = ("tape",)

    def __init__(self, size: int, hidden: int, tape: int) -> None:
        super().__init__()
        self.tape = tape
        self.w, self.r = glorot(5 * hidden, size, gates=5), glorot(5 * hidden, hidden, gates=5)
        self.bias = nn.Parameter(torch.zeros(5 * hidden))
        self.u, self.v = glorot(hidden, hidden, gates=1), _v(size=hidden)

    def start(self, given: State) -> State:
        h, c = given["hidden"], given["cell"]
        batch, beam, hidden = h.shape
        empty = {
            "keys": h.new_zeros(batch, beam, self.tape, hidden),
            "states": h.new_zeros(batch, beam, self.tape, 2 * hidden),
            "query": torch.zeros_like(h),
            "count": torch.zeros_like(h[..., :1], dtype=torch.long),
        }
        return {**empty, **self._written(empty, h, c)}

    def _written(self, state: State, h: Tensor, c: Tensor) -> State:
        """What of the state h and c change."""
        return {
            "keys": append(state["keys"], nn.functional.linear(h, self.u)),
            "states": append(state["states"], torch.cat([h, c], -1)),
            "count": state["count"] + 1,
        }

    def query(self, state: State) -> Tensor:
        newest = state["states"][:, :, -1]
        return newest[..., : newest.shape[-1] // 2]

    def projection(self) -> tuple[Tensor, Tensor]:
        return self.w, self.bias

    def forward(self, projected: Tensor, state: State) -> tuple[Tensor, State]:
        blocks = [4 * len(self.v), len(self.v)]
        gates, asked = torch.split(projected, blocks, -1)
        query, slots = asked + state["query"], real(state["count"], state["states"])
        read, _ = torch_ops.additive_attention(
            rows(query)[:, None], *map(rows, (state["keys"], state["states"], slots)), self.v
        )
        summary, cell = read.reshape(*query.shape[:2], -1).chunk(2, -1)
        from_summary, next_query = torch.split(nn.functional.linear(summary, self.r), blocks, -1)
        h, c = lstm_step(gates + from_summary, cell)
        return h, {**self._written(state, h, c), "query": next_query}
