"""Long short-term memory-networks (Cheng et al. 2016, https://arxiv.org/abs/1601.06733): encoder layer and cell.

Equations: edge_attn/ops/intra_attention.py. An encoder-decoder of both, with an attention between them, is the paper's
shallow fusion.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_attn.models.interface import State
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.recurrent import Cell, glorot, lstm_step
from edge_attn.models.layers.state_buffer import append, filled_slots, flatten_beams
from edge_attn.ops import intra_attention as op


def _intra_attention(
    x: Tensor, lengths: Tensor, w: Tensor, r: Tensor, b: Tensor, u: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run one direction; the tape has only past states, so no mask is needed."""
    time, hidden = x.shape[1], r.shape[1]
    blocks = [4 * hidden, len(u)]
    query, keys = x.new_zeros(len(x), len(u)), x.new_zeros(len(x), 0, len(u))  # (batch, attn), (batch, t, attn)
    states = x.new_zeros(len(x), 0, 2 * hidden)  # (batch, t, 2 hidden)
    rows = []
    for t, projected in enumerate(nn.functional.linear(x, w, b).unbind(1)):
        gates, query_from_x = torch.split(projected, blocks, -1)
        row = (torch.tanh(keys + (query_from_x + query)[:, None]) @ v).softmax(-1)  # (batch, t)
        rows.append(nn.functional.pad(row, (0, time - t)))
        summary, cell = (row[:, None] @ states)[:, 0].chunk(2, -1)
        from_summary, query = torch.split(nn.functional.linear(summary, r), blocks, -1)
        h, c = lstm_step(gates + from_summary, cell)
        keys = torch.cat([keys, nn.functional.linear(h, u)[:, None]], 1)
        states = torch.cat([states, torch.cat([h, c], -1)[:, None]], 1)
    inside = (torch.arange(time, device=x.device) < lengths[:, None])[:, :, None]  # (batch, src, 1)
    states = states.masked_fill(~inside, 0.0)
    final = states[torch.arange(len(x), device=x.device), lengths.clamp(min=1) - 1]
    last, last_cell = (state.clone() for state in final.chunk(2, -1))  # an op's outputs share no memory
    weights = torch.stack(rows, 1).masked_fill(~inside, 0.0)  # (batch, src, src)
    return states[..., :hidden].clone(), last, last_cell, weights


def _fake(x: Tensor, lengths: Tensor, w: Tensor, r: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    batch, time, hidden = x.shape[0], x.shape[1], r.shape[1]
    return tuple(x.new_empty(shape) for shape in ((batch, time, hidden), *((batch, hidden),) * 2, (batch, time, time)))


intra_attention = torch_ops.register(op.OP, _intra_attention, _fake)


def _initial_v(*directions: int, size: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*directions, size).uniform_(-1, 1) / math.sqrt(size))


def _reversed(x: Tensor, lengths: Tensor) -> Tensor:
    """Return x (batch, src, size) with the real elements of each row in reverse order and the padding unchanged."""
    positions, lengths = torch.arange(x.shape[1], device=x.device), lengths[:, None]
    index = torch.where(positions < lengths, lengths - 1 - positions, positions)
    return torch.gather(x, 1, index[:, :, None].expand(-1, -1, x.shape[2]))


class LstmnLayer(nn.Module):
    """One bidirectional layer with attn = hidden; the second direction reads each row from its last element.

    `cell` is the name of its row in LAYERS.

    Shapes:
        x (batch, src, size), lengths (batch) int64
        -> output (batch, src, 2 hidden), zero past a row's length; last hidden and cell states, each (batch, 2 hidden)
    """

    def __init__(self, cell: str, size: int, hidden: int) -> None:
        super().__init__()
        self.w, self.r = glorot(2, 5 * hidden, size, gates=5), glorot(2, 5 * hidden, hidden, gates=5)
        self.b = nn.Parameter(torch.zeros(2, 5 * hidden))
        self.u, self.v = glorot(2, hidden, hidden, gates=1), _initial_v(2, size=hidden)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        first, second = (
            intra_attention(x_d, lengths, self.w[d], self.r[d], self.b[d], self.u[d], self.v[d])
            for d, x_d in enumerate((x, _reversed(x, lengths)))
        )
        output = torch.cat([first[0], _reversed(second[0], lengths)], -1)
        return output, tuple(torch.cat([first[i], second[i]], -1) for i in (1, 2))


class LstmnCell(Cell):
    """One step. The tape has `tape` slots and drops the oldest of more past states.

    The decoder's initial state is the tape's first entry. The state also contains the keys W_h h, computed once, and
    W_h~ h~, the summary's part of the next query.
    """

    final_states = ("hidden", "cell")

    def __init__(self, size: int, hidden: int, tape: int) -> None:
        super().__init__()
        self.tape = tape
        self.w, self.r = glorot(5 * hidden, size, gates=5), glorot(5 * hidden, hidden, gates=5)
        self.bias = nn.Parameter(torch.zeros(5 * hidden))
        self.u, self.v = glorot(hidden, hidden, gates=1), _initial_v(size=hidden)

    @classmethod
    def from_sizes(cls, size: int, hidden: int, tape: int) -> LstmnCell:
        return cls(size, hidden, tape)

    def start(self, initial: State) -> State:
        h, c = initial["hidden"], initial["cell"]
        batch, beam, hidden = h.shape
        empty = {
            "keys": h.new_zeros(batch, beam, self.tape, hidden),
            "states": h.new_zeros(batch, beam, self.tape, 2 * hidden),
            "query": torch.zeros_like(h),
            "count": torch.zeros_like(h[..., :1], dtype=torch.long),
        }
        return {**empty, **self._appended(empty, h, c)}

    def _appended(self, state: State, h: Tensor, c: Tensor) -> State:
        """Return the parts of the state that change when h and c are appended."""
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
        gates, query_from_x = torch.split(projected, blocks, -1)
        query, slots = query_from_x + state["query"], filled_slots(state["count"], state["states"])
        context, _ = torch_ops.additive_attention(
            flatten_beams(query)[:, None], *map(flatten_beams, (state["keys"], state["states"], slots)), self.v
        )
        summary, cell = context.reshape(*query.shape[:2], 2 * query.shape[-1]).chunk(2, -1)
        from_summary, next_query = torch.split(nn.functional.linear(summary, self.r), blocks, -1)
        h, c = lstm_step(gates + from_summary, cell)
        return h, {**self._appended(state, h, c), "query": next_query}
