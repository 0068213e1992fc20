"""Coverage: the attention so far is a feature of the energy, so that no source word is repeated or omitted.

    C_i = sum of a_t over the steps t before i      (See et al. 2017, https://arxiv.org/abs/1704.04368, equation 10)
    e_ij = v^T tanh(W s_i + U h_j + b + w_c C_ij)   (equation 11), for an additive score, w_c a vector
    e_ij = score(s_i, h_j) + w_c C_ij               for every other, w_c a number

Tu et al. 2016 (https://arxiv.org/abs/1601.04811) call it linguistic coverage, with a fertility of one. Training does
not use the coverage loss of See et al. (equations 12 and 13).

Shapes:
    coverage (batch, tgt, src), the state: zero before the first step, then the sum of the weights
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_attn.models.interface import Memory, State
from edge_attn.models.layers.attention import (
    Additive,
    Attention,
    AttentionOptions,
    AttentionWrapper,
)
from edge_attn.models.layers.normalizers import context_and_weights


class Coverage(AttentionWrapper):
    """`score` with the coverage feature. w_c is zero at first, so an untrained wrapper equals `score`."""

    def __init__(self, score: Attention, normalizer: str = "softmax") -> None:
        super().__init__(score)
        self.normalizer = normalizer
        self.w = nn.Parameter(torch.zeros_like(score.v) if isinstance(score, Additive) else torch.zeros(()))

    @classmethod
    def wrap(cls, score: Attention, options: AttentionOptions) -> Coverage:
        return cls(score, options.normalizer)

    def start(self, memory: Memory) -> State:
        return {"coverage": memory["values"].new_zeros(memory["mask"].shape)[:, None, :]}

    def step(self, query: Tensor, memory: Memory, state: State) -> tuple[Tensor, Tensor | None, State]:
        coverage = state["coverage"]
        if isinstance(self.score, Additive):
            energy = self.score.energy(query, memory, coverage[..., None] * self.w)
        else:
            energy = self.score.energy(query, memory) + coverage * self.w
        context, weights = context_and_weights(energy, memory["values"], memory["mask"], self.normalizer)
        return context, weights, {"coverage": coverage + weights}

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Return context and weights of the first step."""
        context, weights, _ = self.step(query, memory, self.start(memory))
        return context, weights
