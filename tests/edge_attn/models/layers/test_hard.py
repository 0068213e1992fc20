"""Hard attention: one position at inference, seeded samples in training, and gradients of both estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_attn.errors import ConfigError
from edge_attn.models.interface import Memory
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.attention import Attention
from edge_attn.models.layers.hard import TRAININGS, Hard, hard_attention
from edge_attn.ops import hard as hard_op
from edge_attn.registry import ATTENTIONS, resolve
from edge_attn.spec import GraphSpec, TensorSpec

torch.set_num_threads(1)

HIDDEN, ATTN, SRC = 6, 5, 4
SCORES = {"dot": HIDDEN, "general": 7, "concat": 7, "scaled": HIDDEN}
"""Value size of each score."""
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


# ---- inference


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("score", SCORES)
@torch.no_grad()
def test_inference_takes_the_largest_energy(score: str, training: str) -> None:
    module = hard(score, training).eval()
    query, memory = sentence(module, score)
    assert module.start(memory) == {}
    context, weights, state = module.step(query, memory, {})
    expected = hard_op.oracle(
        module.score.energy(query, memory).numpy(), memory["values"].numpy(), MASK[:, None, :].numpy()
    )
    np.testing.assert_allclose(context, expected[0], rtol=1e-12)
    np.testing.assert_array_equal(weights, expected[1])
    assert state == {}
    torch.testing.assert_close(module(query, memory), (context, weights))
    assert all(torch.equal(context[b, t], memory["values"][b, weights[b, t].argmax()]) for b in (0, 1) for t in (0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_first_of_equal_energies_is_chosen(dtype: torch.dtype) -> None:
    energy = torch.tensor([[[1.0, 3.0, 3.0, 3.0], [2.0, 2.0, 1.0, 9.0], [9.0, -8.0, -8.0, 9.0]]], dtype=dtype)
    mask = torch.tensor([[[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0]]], dtype=torch.bool)
    _, weights = hard_attention(energy, torch.eye(4, dtype=dtype)[None], mask)
    assert weights[0].tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]


# ---- samples


@pytest.mark.parametrize("training", TRAININGS)
def test_training_samples_follow_the_softmax(training: str) -> None:
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
def test_samples_depend_on_the_seed(training: str) -> None:
    module = hard("concat", training).train()
    query, memory = sentence(module, "concat", tgt=50)

    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        weights: Tensor = module(query, memory)[1]
        return weights.detach()

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


# ---- gradients


@pytest.mark.parametrize("mask", [MASK[:, None, :], MASK[:, None, :].expand(-1, 2, -1)])
def test_op_has_the_gradient_of_the_softmax(mask: Tensor) -> None:
    energy, values = random_tensor(3, 2, SRC, seed=1).requires_grad_(), random_tensor(3, SRC, 5, seed=2)
    downstream, on_weights = random_tensor(3, 2, 5, seed=3), random_tensor(3, 2, SRC, seed=4)

    def loss(context: Tensor, weights: Tensor) -> Tensor:
        return (context * downstream).sum() + (weights * on_weights).sum()

    soft = torch_ops.masked_softmax(energy, mask)
    (expected,) = torch.autograd.grad(loss(soft @ values, soft), energy)
    (actual,) = torch.autograd.grad(loss(*hard_attention(energy, values, mask)), energy)
    torch.testing.assert_close(actual, expected)
    assert (actual[2] == 0).all()
    assert (actual[1, :, 3] == 0).all()


@pytest.mark.parametrize("score", ["general", "concat"])
@pytest.mark.parametrize("training", TRAININGS)
def test_gradients_reach_every_parameter_but_no_padding(training: str, score: str) -> None:
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


def test_reinforce_passes_no_gradient_through_the_choice() -> None:
    module = hard("general", "reinforce").train()
    query, memory = sentence(module, "general")
    query.requires_grad_()
    context, weights, state = module.step(query, memory, {})
    assert weights is not None
    assert not weights.requires_grad
    assert not context.requires_grad or torch.autograd.grad(context.sum(), query, allow_unused=True)[0] is None
    assert torch.autograd.grad(state["choice"].sum(), query)[0] is not None


def test_choice_is_its_log_probability() -> None:
    module = hard("general", "reinforce").train()
    query, memory = sentence(module, "general")
    _, weights, state = module.step(query, memory, {})
    assert weights is not None
    expected = (softmax_of(module, query, memory) * weights).sum(-1, keepdim=True)
    assert state.keys() == {"choice"}
    torch.testing.assert_close(state["choice"][:2].exp(), expected[:2])
    assert (state["choice"][2] == 0).all()


def test_samples_estimate_the_gradient_of_the_reward() -> None:
    """The mean of (r - b) d log pi is d E[r] for every b (Williams 1992)."""
    module = hard("general", "reinforce").train()
    query, memory = sentence(module, "general", tgt=1)
    rewards = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    weight = next(module.score.parameters())
    expected_reward = (softmax_of(module, query, memory)[0] @ rewards).sum()
    (expected,) = torch.autograd.grad(expected_reward, weight, retain_graph=True)
    query = query[:1].expand(20000, -1, -1)
    memory = {name: tensor[:1].expand(20000, *tensor.shape[1:]) for name, tensor in memory.items()}
    for baseline in (0.0, 1.5):
        torch.manual_seed(5)
        _, weights, state = module.step(query, memory, {})
        assert weights is not None
        advantage = (weights @ rewards)[:, :, None] - baseline
        (actual,) = torch.autograd.grad((advantage * state["choice"]).mean(), weight, retain_graph=True)
        assert (actual - expected).norm() < 0.1 * expected.norm()


def test_unknown_training_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^hard_training must be one of straight-through, reinforce, got 'evolution'$"
    ):
        hard("dot", "evolution")


# ---- export


class HardLayer(nn.Module):
    def __init__(self, module: Attention) -> None:
        super().__init__()
        self.module = module

    def forward(self, query: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        context, weights = self.module(query, self.module.prepare(values, mask, values[:, 0]))
        return context, weights


@pytest.mark.parametrize("score", SCORES)
def test_export_is_one_node_and_equals_torch(score: str, check_against_torch: Any) -> None:
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

    def make_inputs(batch: int, tgt: int, src: int) -> list[Tensor]:
        floats = random_tensor(batch, tgt, HIDDEN, seed=1), random_tensor(batch, src, SCORES[score], seed=2)
        return [*(tensor.float() for tensor in floats), torch.arange(src) < torch.arange(src, src - batch, -1)[:, None]]

    check_against_torch(HardLayer(module), spec, make_inputs, "HardAttention")
