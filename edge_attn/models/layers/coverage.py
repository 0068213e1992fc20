"""Coverage: what was attended to so far, as a feature of the energy, so that nothing is said twice or left out.

    C_i = sum of a_t over the steps t before i      (See et al. 2017, https://arxiv.org/abs/1704.04368, equation 10)
    e_ij = v^T tanh(W s_i + U h_j + b + w_c C_ij)   (equation 11), for an additive score, w_c a vector
    e_ij = score(s_i, h_j) + w_c C_ij               for every other, w_c a number

Tu et al. 2016 (https://arxiv.org/abs/1601.04811) call it the linguistic coverage, with a fertility of one.
The loss that See et al. add for it (equations 12 and 13) is not part of training here.

Shapes:
    coverage (batch, tgt, src), a state: zero at first, then raised by each step's weights
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_attn.models.layers.attention import Additive, Attention, AttentionWrapper, Memory, State
from edge_attn.models.layers.normalizers import attend


class Coverage(AttentionWrapper):
    """`score` with the feature; w_c starts at zero, where it is `score` itself."""

    options = ("normalizer",)

    def __init__(self, score: Attention, normalizer: str = "softmax") -> None:
        super().__init__(score)
        self.normalizer = normalizer
        self.w = nn.Parameter(torch.zeros_like(score.v) if isinstance(score, Additive) else torch.zeros(()))

    def start(self, memory: Memory) -> State:
        return {"coverage": memory["values"].new_zeros(memory["mask"].shape)[:, None, :]}

    def step(self, query: Tensor, memory: Memory, state: State) -> tuple[Tensor, Tensor | None, State]:
        coverage = state["coverage"]
        if isinstance(self.score, Additive):
            energy = self.score.energy(query, memory, coverage[..., None] * self.w)
        else:
            energy = self.score.energy(query, memory) + coverage * self.w
        context, weights = attend(energy, memory["values"], memory["mask"], self.normalizer)
        return context, weights, {"coverage": coverage + weights}

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """The first step."""
        context, weights, _ = self.step(query, memory, self.start(memory))
        return context, weights
