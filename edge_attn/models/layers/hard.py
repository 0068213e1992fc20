"""Hard attention: one source position a step, over any score (Xu et al. 2015, https://arxiv.org/abs/1502.03044).

Inference takes the position of the largest energy. Training takes a sample of the softmax, from torch's generator:

straight-through  the gradient is that of the softmax of energies plus noise, whose argmax is the choice (Jang et al.
                  2017, https://arxiv.org/abs/1611.01144, at temperature 1)
reinforce         no gradient passes through the choice; the loss rewards its log-probability (Xu et al., equation 12)
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_attn.config.validation import one_of
from edge_attn.models.interface import Memory, State
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.attention import Attention, AttentionOptions, AttentionWrapper
from edge_attn.models.layers.normalizers import per_query
from edge_attn.ops import hard as hard_op

TRAININGS = ("straight-through", "reinforce")


def _hard(energy: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the one-hot of the largest energy, with the gradient of the softmax."""
    top = energy.masked_fill(~mask, float("-inf")).amax(-1, keepdim=True)
    largest = mask & (energy == top)
    chosen = (largest & (largest.cumsum(-1) == 1)).to(energy.dtype)
    soft = torch_ops.masked_softmax(energy, mask)
    weights = chosen + (soft - soft.detach())
    return weights @ values, weights


hard_attention = torch_ops.register(hard_op.OP, _hard)


class Hard(AttentionWrapper):
    """Hard attention over the energies of `score`.

    Raises:
        ConfigError: there is no such training.
    """

    def __init__(self, score: Attention, hard_training: str = "straight-through") -> None:
        super().__init__(score)
        one_of("hard_training", hard_training, TRAININGS)
        self.rewarded = hard_training == "reinforce"

    @classmethod
    def wrap(cls, score: Attention, options: AttentionOptions) -> Hard:
        return cls(score, options.hard_training)

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        context, weights, _ = self.step(query, memory, {})
        return context, weights

    def step(self, query: Tensor, memory: Memory, state: State) -> tuple[Tensor, Tensor | None, State]:
        """Return context, weights and state.

        Training with `reinforce` returns the state "choice" (batch, tgt, 1), the log-probability of the choice.
        """
        energy, mask = self.energy(query, memory), per_query(memory["mask"])
        if not self.training:
            context, weights = hard_attention(energy, memory["values"], mask)
            return context, weights, {}
        noisy = energy - torch.empty_like(energy, dtype=torch.float32).exponential_().log()  # Gumbel noise
        if not self.rewarded:
            context, weights = hard_attention(noisy, memory["values"], mask)
            return context, weights, {}
        context, weights = hard_attention(noisy.detach(), memory["values"], mask)
        no_key = ~mask.any(-1, keepdim=True)
        log_probs = energy.masked_fill(~(mask | no_key), float("-inf")).log_softmax(-1)  # (batch, tgt, src)
        return context, weights, {"choice": log_probs.masked_fill(weights == 0.0, 0.0).sum(-1, keepdim=True)}
