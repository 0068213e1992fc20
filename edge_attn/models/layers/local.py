"""Local attention: a window of the source, over any score (Luong et al. 2015, section 3.2, equations 9 and 10).

    local-m:  p_t = t
    local-p:  p_t = S sigmoid(v^T tanh(W s_t)),  S the number of real tokens; and a Gaussian around p_t

Only keys j with |j - p_t| <= D have weights. Positions count from 0, see edge_attn/ops/local.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edge_attn.config.validation import at_least, one_of
from edge_attn.models.interface import Memory, State
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.attention import Attention, AttentionOptions, AttentionWrapper
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


LOCAL_ATTENTIONS = {
    "softmax": torch_ops.register(local_op.OP, _windowed(torch_ops.masked_softmax)),
    "sparsemax": torch_ops.register(local_op.SPARSE_OP, _windowed(sparsemax)),
}
"""The op for each normalizer."""


class Local(AttentionWrapper):
    """Attention in a window; a subclass computes its center.

    Raises:
        ConfigError: the window is less than one, or there is no such normalizer.
    """

    gaussian = 0

    def __init__(self, score: Attention, window: int, normalizer: str = "softmax") -> None:
        super().__init__(score)
        at_least("window", window, 1)
        one_of("normalizer", normalizer, NORMALIZERS)
        self.window, self.normalizer = window, normalizer

    @classmethod
    def wrap(cls, score: Attention, options: AttentionOptions) -> Local:
        return cls(score, options.window, options.normalizer)

    def attend_at(self, position: Tensor, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return context and weights of windows centered at `position` (batch, tgt, 1)."""
        energy = self.energy(query, memory)
        op, mask = LOCAL_ATTENTIONS[self.normalizer], per_query(memory["mask"])
        context, weights = op(energy, position, memory["values"], mask, self.window, self.gaussian)
        return context, weights


class Monotonic(Local):
    """local-m. `forward` takes the queries of all target positions from the first on; `step` counts the positions."""

    def start(self, memory: Memory) -> State:
        values = memory["values"]
        return {"position": values.new_zeros(values.shape[0], 1, 1)}

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        position = torch.arange(query.shape[1], dtype=query.dtype, device=query.device)
        return self.attend_at(position[None, :, None].expand(query.shape[0], -1, -1), query, memory)

    def step(self, query: Tensor, memory: Memory, state: State) -> tuple[Tensor, Tensor | None, State]:
        return (*self.attend_at(state["position"], query, memory), {"position": state["position"] + 1.0})


class Predictive(Local):
    """local-p. It predicts p_t from the decoder's state and has no state itself."""

    gaussian = 1

    def __init__(
        self, score: Attention, window: int, query_size: int, attention_size: int, normalizer: str = "softmax"
    ) -> None:
        """Build the layer.

        Args:
            score: attention with energies.
            window: D, the number of positions on each side of the center.
            query_size: size of the decoder's states.
            attention_size: size of the hidden layer that predicts the center.
            normalizer: a name in NORMALIZERS.
        """
        super().__init__(score, window, normalizer)
        self.inner = nn.Linear(query_size, attention_size, bias=False)
        self.v = nn.Parameter(torch.empty(attention_size).uniform_(-1, 1) / math.sqrt(attention_size))

    @classmethod
    def wrap(cls, score: Attention, options: AttentionOptions) -> Predictive:
        return cls(score, options.window, options.query_size, options.attention_size, options.normalizer)

    def position(self, query: Tensor, memory: Memory) -> Tensor:
        """Return p_t (batch, tgt, 1), between 0 and S."""
        length = per_query(memory["mask"]).sum(-1, keepdim=True)
        return length * torch.sigmoid(torch.tanh(self.inner(query)) @ self.v)[:, :, None]

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        return self.attend_at(self.position(query, memory), query, memory)
