"""Softmax and sparsemax over energies: values of the oracles, gradients, masks of both shapes, ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_attn.errors import ConfigError
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.attention import Attention
from edge_attn.models.layers.normalizers import NORMALIZERS, context_and_weights, softmax_attention, sparsemax
from edge_attn.ops import masked_softmax
from edge_attn.ops import sparsemax_attention as sparsemax_op
from edge_attn.registry import ATTENTIONS, resolve
from edge_attn.spec import GraphSpec, TensorSpec

torch.set_num_threads(1)

MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
ORACLES = {"softmax": masked_softmax, "sparsemax": sparsemax_op.sparsemax}
KINDS = {"additive": 7, "dot": 6, "general": 7, "scaled": 6}
"""Value size of each kind."""


def random_tensor(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_normalizer_is_tested() -> None:
    assert set(ORACLES) == set(NORMALIZERS)


@pytest.mark.parametrize("mask", [MASK, MASK[:, None, :], MASK[:, None, :].expand(-1, 2, -1)], ids=["2d", "one", "tgt"])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@torch.no_grad()
def test_weights_equal_the_oracle_for_both_mask_shapes(normalizer: str, mask: Tensor) -> None:
    energy, values = random_tensor(3, 2, 5, seed=1), random_tensor(3, 5, 4, seed=2)
    context, weights = context_and_weights(energy, values, mask, normalizer)
    expected = ORACLES[normalizer](energy.numpy(), MASK[:, None, :].numpy())
    np.testing.assert_allclose(weights, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(context, expected @ values.numpy(), rtol=1e-12, atol=1e-12)
    assert (weights[2] == 0).all()
    assert (context[2] == 0).all()


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_gradients_are_correct_and_zero_for_padding(normalizer: str) -> None:
    # Small energies, because a support of one key has gradient zero.
    energy = (0.2 * random_tensor(3, 2, 5, seed=1)).requires_grad_()
    values = random_tensor(3, 5, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda e, h: context_and_weights(e, h, MASK, normalizer), (energy, values))
    context, weights = context_and_weights(energy, values, MASK, normalizer)
    (context.square().sum() + weights.square().sum()).backward()
    assert energy.grad is not None
    assert (energy.grad.transpose(1, 2)[~MASK] == 0).all()
    assert (energy.grad[:2] != 0).any(-1).all()


def test_unknown_normalizer_is_refused() -> None:
    energy = random_tensor(3, 2, 5, seed=1)
    with pytest.raises(ConfigError, match=r"^normalizer must be one of softmax, sparsemax, got 'entmax'$"):
        context_and_weights(energy, energy.transpose(1, 2), MASK, "entmax")


# ---- sparsemax


def sorted_sparsemax(z: Tensor) -> Tensor:
    """Return the sparsemax of Martins and Astudillo 2016, algorithm 1."""
    largest_first = z.sort(-1, descending=True).values
    sums = largest_first.cumsum(-1)
    k = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    size = (1 + k * largest_first > sums).sum(-1, keepdim=True)
    return (z - (sums.gather(-1, size - 1) - 1) / size).clamp(min=0)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.3, 1.0, 10.0, 1e6])
@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_sparsemax_without_sorting_equals_the_paper(size: int, scale: float) -> None:
    z = scale * random_tensor(200, size, seed=size)
    weights = sparsemax(z, torch.ones(size, dtype=torch.bool))
    torch.testing.assert_close(weights, sorted_sparsemax(z), rtol=1e-12, atol=1e-9 if scale == 1e6 else 1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(200, dtype=z.dtype), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("energy", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], [0.25, 0.25, 0.25, 0.25]),
        ([5.0, 5.0, 1.0], [0.5, 0.5, 0.0]),
        ([1.0, 0.0], [1.0, 0.0]),
        ([0.5, 0.0], [0.75, 0.25]),
        ([1.0, 0.5, 0.5], [2 / 3, 1 / 6, 1 / 6]),
        ([1.0, 0.5, 0.5, 0.5], [0.625, 0.125, 0.125, 0.125]),
        ([2.0**20, 2.0**20 - 0.5], [0.75, 0.25]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparsemax_equals_values_by_hand(energy: list[float], expected: list[float], dtype: torch.dtype) -> None:
    weights = sparsemax(torch.tensor(energy, dtype=dtype), torch.ones(len(energy), dtype=torch.bool))
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=dtype))
    assert ((weights == 0) == (torch.tensor(expected) == 0)).all()


def test_sparsemax_has_the_papers_jacobian() -> None:
    """Compare with diag(s) - s s^T / |S|, s the support's indicator (Martins and Astudillo 2016, section 2.5)."""
    z, mask = torch.tensor([1.0, 0.7, 0.4, -3.0, 0.9], dtype=torch.float64), torch.tensor([1, 1, 1, 1, 0]).bool()
    s = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert torch.equal(sparsemax(z, mask) > 0, s.bool())
    jacobian = torch.autograd.functional.jacobian(lambda e: sparsemax(e, mask), z)
    torch.testing.assert_close(jacobian, torch.diag(s) - torch.outer(s, s) / 3)


# ---- the penalty


@pytest.mark.parametrize("penalty", [4.0, 1e9])
@torch.no_grad()
def test_penalty_changes_only_rows_with_no_key(penalty: float) -> None:
    energy, values = random_tensor(3, 2, 5, seed=1).float(), random_tensor(3, 5, 4, seed=2).float()
    _, plain = context_and_weights(energy, values, MASK, "softmax")
    context, weights = softmax_attention(energy, values, MASK[:, None, :], penalty)
    assert torch.equal(weights[:2], plain[:2])
    torch.testing.assert_close(weights[2], (energy[2] - penalty).softmax(-1), rtol=0, atol=0)
    torch.testing.assert_close(context[2], weights[2] @ values[2])
    if penalty == 1e9:  # fp32 rounds energies near one away, as in Keras
        assert (weights[2] == 0.2).all()


# ---- as an option of every kind


@pytest.mark.parametrize("name", KINDS)
def test_kind_with_sparsemax_normalizes_its_energies(name: str) -> None:
    torch.manual_seed(0)
    module: nn.Module = resolve("attention", ATTENTIONS, name)(6, KINDS[name], 5).double()
    module.normalizer = "sparsemax"  # type: ignore[assignment]
    query, values = random_tensor(3, 2, 6, seed=3), random_tensor(3, 5, KINDS[name], seed=4)
    memory = module.prepare(values, MASK, values[:, 0])  # type: ignore[operator]
    context, weights = module(query, memory)
    energy = module.energy(query, memory)  # type: ignore[operator]
    torch.testing.assert_close(weights, sparsemax(energy, MASK[:, None, :]))
    assert not torch.equal(weights, torch_ops.masked_softmax(energy, MASK[:, None, :]))
    if list(module.parameters()):
        context.square().sum().backward()
    for parameter, value in module.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter


# ---- export


class SparseLayer(nn.Module):
    def __init__(self, module: Attention) -> None:
        super().__init__()
        self.module = module

    def forward(self, query: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        context, weights = self.module(query, self.module.prepare(values, mask, values[:, 0]))
        return context, weights


@pytest.mark.parametrize("score", KINDS)
def test_export_is_one_node_and_equals_torch(score: str, check_against_torch: Any) -> None:
    torch.manual_seed(0)
    module: Attention = resolve("attention", ATTENTIONS, score)(6, KINDS[score], 5)
    module.normalizer = "sparsemax"
    spec = GraphSpec(
        "attention.onnx",
        (
            TensorSpec("query", "float32", ("batch", "tgt", 6)),
            TensorSpec("values", "float32", ("batch", "src", KINDS[score])),
            TensorSpec("mask", "bool", ("batch", "src")),
        ),
        (
            TensorSpec("context", "float32", ("batch", "tgt", KINDS[score])),
            TensorSpec("weights", "float32", ("batch", "tgt", "src")),
        ),
    )

    def make_inputs(batch: int, tgt: int, src: int) -> list[Tensor]:
        floats = random_tensor(batch, tgt, 6, seed=1), random_tensor(batch, src, KINDS[score], seed=2)
        return [*(tensor.float() for tensor in floats), torch.arange(src) < torch.arange(src, src - batch, -1)[:, None]]

    check_against_torch(SparseLayer(module), spec, make_inputs, "SparsemaxAttention")
