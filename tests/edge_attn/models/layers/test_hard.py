"""Hard attention: one position at inference, seeded samples in training, and the gradients of either estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_attn.errors import ConfigError
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.attention import Attention, Memory
from edge_attn.models.layers.hard import TRAININGS, Hard, hard_attention
from edge_attn.ops import hard as hard_op
from edge_attn.registry import ATTENTIONS, resolve
from edge_attn.spec import GraphSpec, TensorSpec

torch.set_num_threads(1)

HIDDEN, ATTN, SRC = 6, 5, 4
SCORES = {"dot": HIDDEN, "general": 7, "concat": 7, "scaled": HIDDEN}
"""Value sizes."""
MASK = torch.arange(SRC) < torch.tensor([[SRC], [3], [0]])


def random_tensor(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hard(score: str, training: str = "straight-through") -> Hard:
    torch.manual_seed(0)
    inner: Attention = resolve("attention", ATTENTIONS, score)(HIDDEN, SCORES[score], ATTN)
    return Hard(inner, training).double()


def sentence(module: Hard, score: str, tgt: int = 2) -> tuple[Tensor, Memory]:
    values = random_tensor(3, SRC, SCORES[score], seed=2)
    return random_tensor(3, tgt, HIDDEN, seed=1), module.prepare(values, MASK, values[:, 0])


def softmax_of(module: Hard, query: Tensor, memory: Memory) -> Tensor:
    return torch_ops.masked_softmax(module.score.energy(query, memory), MASK[:, None, :])


# ---- at inference


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("score", SCORES)
@torch.no_grad()
def test_at_inference_a_module_takes_the_largest_energy_and_remembers_nothing(score: str, training: str) -> None:
    module = hard(score, training).eval()
    query, memory = sentence(module, score)
    assert module.start(memory) == {}
    context, weights, state = module.step(query, memory, {})
    wanted = hard_op.oracle(
        module.score.energy(query, memory).numpy(), memory["values"].numpy(), MASK[:, None, :].numpy()
    )
    np.testing.assert_allclose(context, wanted[0], rtol=1e-12)
    np.testing.assert_array_equal(weights, wanted[1])
    assert state == {}
    torch.testing.assert_close(module(query, memory), (context, weights))
    assert all(torch.equal(context[b, t], memory["values"][b, weights[b, t].argmax()]) for b in (0, 1) for t in (0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_the_first_of_equals_is_chosen_and_padding_never(dtype: torch.dtype) -> None:
    energy = torch.tensor([[[1.0, 3.0, 3.0, 3.0], [2.0, 2.0, 1.0, 9.0], [9.0, -8.0, -8.0, 9.0]]], dtype=dtype)
    mask = torch.tensor([[[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0]]], dtype=torch.bool)
    _, weights = hard_attention(energy, torch.eye(4, dtype=dtype)[None], mask)
    assert weights[0].tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]


# ---- samples


@pytest.mark.parametrize("training", TRAININGS)
def test_in_training_samples_follow_the_softmax(training: str) -> None:
    module = hard("general", training).train()
    query, memory = sentence(module, "general")
    counts, draws = torch.zeros(3, 2, SRC).double(), 4000
    torch.manual_seed(3)
    for _ in range(draws):
        _, weights, _ = module.step(query, memory, {})
        assert weights is not None
        assert ((weights == 1).sum(-1) == torch.tensor([[1, 1], [1, 1], [0, 0]])).all()
        assert (weights.sum(-1) == (weights == 1).sum(-1)).all()
        counts += weights.detach()
    expected = softmax_of(module, query, memory).detach()
    deviation = (draws * expected * (1 - expected)).sqrt()
    assert ((counts - draws * expected).abs() <= 4.5 * deviation + 1e-9).all()


@pytest.mark.parametrize("training", TRAININGS)
def test_samples_are_those_of_the_seed(training: str) -> None:
    module = hard("concat", training).train()
    query, memory = sentence(module, "concat", tgt=50)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        weights: Tensor = module(query, memory)[1]
        return weights.detach()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


# ---- gradients


@pytest.mark.parametrize("mask", [MASK[:, None, :], MASK[:, None, :].expand(-1, 2, -1)])
def test_the_gradient_of_the_op_is_that_of_the_softmax(mask: Tensor) -> None:
    energy, values = random_tensor(3, 2, SRC, seed=1).requires_grad_(), random_tensor(3, SRC, 5, seed=2)
    downstream, on_weights = random_tensor(3, 2, 5, seed=3), random_tensor(3, 2, SRC, seed=4)

    def loss(context: Tensor, weights: Tensor) -> Tensor:
        return (context * downstream).sum() + (weights * on_weights).sum()

    soft = torch_ops.masked_softmax(energy, mask)
    (wanted,) = torch.autograd.grad(loss(soft @ values, soft), energy)
    (given,) = torch.autograd.grad(loss(*hard_attention(energy, values, mask)), energy)
    torch.testing.assert_close(given, wanted)
    assert (given[2] == 0).all()
    assert (given[1, :, 3] == 0).all()


@pytest.mark.parametrize("score", ["general", "concat"])
@pytest.mark.parametrize("training", TRAININGS)
def test_gradients_reach_every_parameter_and_padding_gets_none(training: str, score: str) -> None:
    module = hard(score, training).train()
    query = random_tensor(3, 2, HIDDEN, seed=1)
    values = random_tensor(3, SRC, SCORES[score], seed=2).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        context, _, state = module.step(query, module.prepare(values, MASK, values[:, 0]), {})
        chosen = state["choice"].sum() if training == "reinforce" else 0.0
        (context.square().sum() + chosen).backward()
    assert values.grad is not None
    assert (values.grad[2] == 0).all()
    assert (values.grad[1, 3] == 0).all()
    for parameter, value in module.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert (value.grad != 0).any(), parameter


def test_by_reward_no_gradient_passes_through_the_choice() -> None:
    module = hard("general", "reinforce").train()
    query, memory = sentence(module, "general")
    query.requires_grad_()
    context, weights, state = module.step(query, memory, {})
    assert weights is not None
    assert not weights.requires_grad
    assert not context.requires_grad or torch.autograd.grad(context.sum(), query, allow_unused=True)[0] is None
    assert torch.autograd.grad(state["choice"].sum(), query)[0] is not None


def test_the_choice_is_the_log_probability_of_what_was_chosen() -> None:
    module = hard("general", "reinforce").train()
    query, memory = sentence(module, "general")
    _, weights, state = module.step(query, memory, {})
    assert weights is not None
    wanted = (softmax_of(module, query, memory) * weights).sum(-1, keepdim=True)
    assert state.keys() == {"choice"}
    torch.testing.assert_close(state["choice"][:2].exp(), wanted[:2])
    assert (state["choice"][2] == 0).all()


def test_rewarded_samples_estimate_the_gradient_of_the_expected_reward() -> None:
    """The mean of (r - b) d log pi is d E[r], whatever b is (Williams 1992)."""
    module = hard("general", "reinforce").train()
    query, memory = sentence(module, "general", tgt=1)
    rewards = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    weight = next(module.score.parameters())
    expected = (softmax_of(module, query, memory)[0] @ rewards).sum()
    (wanted,) = torch.autograd.grad(expected, weight, retain_graph=True)
    query = query[:1].expand(20000, -1, -1)
    memory = {name: tensor[:1].expand(20000, *tensor.shape[1:]) for name, tensor in memory.items()}
    for baseline in (0.0, 1.5):
        torch.manual_seed(5)
        _, weights, state = module.step(query, memory, {})
        assert weights is not None
        advantage = (weights @ rewards)[:, :, None] - baseline
        (found,) = torch.autograd.grad((advantage * state["choice"]).mean(), weight, retain_graph=True)
        assert (found - wanted).norm() < 0.1 * wanted.norm()


def test_an_unknown_training_is_one_sentence() -> None:
    with pytest.raises(
        ConfigError, match=r"^hard_training must be one of straight-through, reinforce, got 'evolution'$"
    ):
        hard("dot", "evolution")


# ---- export


class Whole(nn.Module):
    def __init__(self, module: Attention) -> None:
        super().__init__()
        self.module = module

    def forward(self, query: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        context, weights = self.module(query, self.module.prepare(values, mask, values[:, 0]))
        return context, weights


@pytest.mark.parametrize("score", SCORES)
def test_hard_attention_exports_as_one_node_and_runs_at_other_sizes(score: str, runs_as_torch: Any) -> None:
    module = hard(score).float().eval()
    spec = GraphSpec(
        "attention.onnx",
        (
            TensorSpec("query", "float32", ("batch", "tgt", HIDDEN)),
            TensorSpec("values", "float32", ("batch", "src", SCORES[score])),
            TensorSpec("mask", "bool", ("batch", "src")),
        ),
        (
            TensorSpec("context", "float32", ("batch", "tgt", SCORES[score])),
            TensorSpec("weights", "float32", ("batch", "tgt", "src")),
        ),
    )

    def given(batch: int, tgt: int, src: int) -> list[Tensor]:
        floats = random_tensor(batch, tgt, HIDDEN, seed=1), random_tensor(batch, src, SCORES[score], seed=2)
        return [*(tensor.float() for tensor in floats), torch.arange(src) < torch.arange(src, src - batch, -1)[:, None]]

    runs_as_torch(Whole(module), spec, given, "HardAttention")
