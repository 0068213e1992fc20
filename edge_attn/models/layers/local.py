"""Local attention: a window of the source, over any score (Luong et al. 2015, section 3.2, equations 9 and 10).

    local-m:  p_t = t
    local-p:  p_t = S sigmoid(v^T tanh(W s_t)),  S the number of real tokens; and a Gaussian around p_t

Weights are of the keys j with |j - p_t| <= D, positions counted from 0: edge_attn/ops/local.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edge_attn.config.validation import at_least, one_of
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.attention import Attention, AttentionWrapper, Memory, State
from edge_attn.models.layers.normalizers import NORMALIZERS, per_query, sparsemax
from edge_attn.ops import local as local_op


def _windowed(
    normalize: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor]]:
    def formula(
        energy: Tensor, position: Tensor, values: Tensor, mask: Tensor, window: int, gaussian: int
    ) -> tuple[Tensor, Tensor]:
        offset = torch.arange(energy.shape[-1], dtype=energy.dtype, device=energy.device) - position
        alpha = normalize(energy, mask & (offset.abs() <= window))
        weights = alpha * torch.exp(-2.0 * gaussian * (offset / window).square())
        return weights @ values, weights

    return formula


ATTENDS = {
    "softmax": torch_ops.register(local_op.OP, _windowed(torch_ops.masked_softmax)),
    "sparsemax": torch_ops.register(local_op.SPARSE_OP, _windowed(sparsemax)),
}
"""By the normalizer."""


class Local(AttentionWrapper):
    """The window; a child says where it stands.

    Raises:
        ConfigError: a window below one, or a normalizer that is not there.
    """

    gaussian = 0
    options: tuple[str, ...] = ("window", "normalizer")

    def __init__(self, score: Attention, window: int, normalizer: str = "softmax") -> None:
        super().__init__(score)
        at_least("window", window, 1)
        one_of("normalizer", normalizer, NORMALIZERS)
        self.window, self.normalizer = window, normalizer

    def around(self, position: Tensor, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Context and weights of windows around `position` (batch, tgt, 1)."""
        energy = self.energy(query, memory)
        op, mask = ATTENDS[self.normalizer], per_query(memory["mask"])
        context, weights = op(energy, position, memory["values"], mask, self.window, self.gaussian)
        return context, weights


class Monotonic(Local):
    """local-m. `forward` takes its queries for the whole target, from its first position on; `step` counts."""

    def start(self, memory: Memory) -> State:
        values = memory["values"]
        return {"position": values.new_zeros(values.shape[0], 1, 1)}

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        count = torch.arange(query.shape[1], dtype=query.dtype, device=query.device)
        return self.around(count[None, :, None].expand(query.shape[0], -1, -1), query, memory)

    def step(self, query: Tensor, memory: Memory, state: State) -> tuple[Tensor, Tensor | None, State]:
        return (*self.around(state["position"], query, memory), {"position": state["position"] + 1.0})


class Predictive(Local):
    """local-p: p_t is predicted from the decoder's state, and needs none of its own."""

    gaussian = 1
    options = ("window", "query_size", "attention_size", "normalizer")

    def __init__(
        self, score: Attention, window: int, query_size: int, attention_size: int, normalizer: str = "softmax"
    ) -> None:
        super().__init__(score, window, normalizer)
        self.inner = nn.Linear(query_size, attention_size, bias=False)
        self.v = nn.Parameter(torch.empty(attention_size).uniform_(-1, 1) / math.sqrt(attention_size))

    def position(self, query: Tensor, memory: Memory) -> Tensor:
        """p_t (batch, tgt, 1), between 0 and S."""
        length = per_query(memory["mask"]).sum(-1, keepdim=True)
        return length * torch.sigmoid(torch.tanh(self.inner(query)) @ self.v)[:, :, None]

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        return self.around(self.position(query, memory), query, memory)
