"""Attention layers: each follows its equation and has no state of a sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_attn.models.layers.attention import Additive, Dot, General, Scaled
from edge_attn.models.layers.keras import KerasAdditive, KerasConcat, KerasDot
from edge_attn.models.layers.location import Location
from edge_attn.models.layers.pooling import PooledAttention
from edge_attn.ops import additive as additive_op
from edge_attn.ops import dot as dot_op
from edge_attn.ops import location as location_op
from edge_attn.ops import pooling as pooling_op
from edge_attn.registry import ATTENTIONS, resolve

torch.set_num_threads(1)

HIDDEN, ATTN, SRC = 6, 5, 4
VALUE = {
    "additive": 7,
    "concat": 7,
    "dot": HIDDEN,
    "scaled": HIDDEN,
    "general": 7,
    "location": 7,
    "pooling": 7,
    "keras-dot": HIDDEN,
    "keras-concat": HIDDEN,
    "keras-additive": HIDDEN,
    "none": 7,
}
"""Value size of each kind: e = s^T h needs queries and values of the same size, a projection does not."""
SOFT = [name for name in VALUE if name != "none"]
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)


def random_tensor(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(name: str) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = resolve("attention", ATTENTIONS, name)(HIDDEN, VALUE[name], ATTN)
    return module.double()


def sentence(name: str, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, values and the encoder's summary."""
    return (
        random_tensor(3, 2, HIDDEN, seed=seed),
        random_tensor(3, SRC, VALUE[name], seed=seed + 1),
        random_tensor(3, VALUE[name], seed=seed + 2),
    )


def attend(module: Any, query: Tensor, values: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
    context, weights = module(query, module.prepare(values, MASK, summary))
    return context, weights


def equation(module: nn.Module, query: Tensor, values: Tensor) -> tuple[np.ndarray, ...]:
    """Return context and weights of the paper's equation, from the op's float64 oracle and the layer's weights."""
    p = {name: value.detach().numpy() for name, value in module.named_parameters()}
    s, h, mask = query.numpy(), values.numpy(), MASK.numpy()
    match module:
        case Additive():
            keys = h @ p["keys.weight"].T + p["keys.bias"]
            return additive_op.oracle(s @ p["query.weight"].T, keys, h, mask, p["v"])
        case General():
            return dot_op.oracle(s, h @ p["keys.weight"].T, h, mask)
        case Scaled():
            return dot_op.oracle(s, h, h, mask, scale=1 / math.sqrt(HIDDEN))
        case Dot():
            return dot_op.oracle(s, h, h, mask)
        case Location():
            return location_op.oracle(s, p["w"], h, mask)
        case PooledAttention():
            weights = [p[f"pooling.{name}"] for name in ("hidden.weight", "hidden.bias", "u")]
            context, weight = pooling_op.oracle(h, mask, *weights)
            return np.stack([context] * s.shape[1], 1), np.stack([weight] * s.shape[1], 1)
        case KerasDot():
            return dot_op.oracle(s * p["layer.scale"], h, h, mask)
        case KerasConcat():
            v = np.full(HIDDEN, p["layer.concat_score_weight"])
            return additive_op.oracle(s * p["layer.scale"], h * p["layer.scale"], h, mask, v)
        case KerasAdditive():
            return additive_op.oracle(s, h, h, mask, p["layer.scale"])
    raise AssertionError(f"{type(module).__name__} has no equation here")


def test_every_kind_has_a_test_file() -> None:
    files = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    modules = {row.partition(":")[0].rpartition(".")[2] for row in ATTENTIONS.values()} - {"attention"}
    assert modules <= files
    assert {name for name, row in ATTENTIONS.items() if ".attention:" in row} <= VALUE.keys() <= ATTENTIONS.keys()


@pytest.mark.parametrize("name", SOFT)
@torch.no_grad()
def test_layer_follows_its_equation(name: str) -> None:
    module, (query, values, summary) = attention(name), sentence(name)
    context, weights = attend(module, query, values, summary)
    expected_context, expected_weights = equation(module, query, values)
    np.testing.assert_allclose(context, expected_context, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SOFT)
@torch.no_grad()
def test_weights_sum_to_one_over_real_tokens(name: str) -> None:
    context, weights = attend(attention(name), *sentence(name))
    assert context.shape == (3, 2, VALUE[name])
    assert weights.shape == (3, 2, SRC)
    torch.testing.assert_close(weights.sum(-1), torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]).double())
    assert (weights[~MASK[:, None].expand_as(weights)] == 0).all()
    assert (context[2] == 0).all()


@pytest.mark.parametrize("name", SOFT)
def test_gradients_are_correct_and_reach_every_parameter(name: str) -> None:
    module, (query, values, summary) = attention(name), sentence(name)
    inputs = (query.requires_grad_(), values.requires_grad_())
    assert torch.autograd.gradcheck(lambda q, h: attend(module, q, h, summary), inputs)
    context, weights = attend(module, query, values, summary)
    (context.square().sum() + weights.square().sum()).backward()
    for parameter, value in module.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert (value.grad != 0).any(), parameter


@pytest.mark.parametrize("name", SOFT)
@torch.no_grad()
def test_single_steps_equal_all_steps(name: str) -> None:
    module, (query, values, summary) = attention(name), sentence(name)
    memory = module.prepare(values, MASK, summary)
    context, weights = module(query, memory)
    for t in range(query.shape[1]):
        torch.testing.assert_close(module(query[:, t : t + 1], memory), (context[:, t : t + 1], weights[:, t : t + 1]))


@pytest.mark.parametrize("name", VALUE)
@torch.no_grad()
def test_layer_has_no_state_of_a_sentence(name: str) -> None:
    """Two memories can be used in any order."""
    module, (query, first, summary) = attention(name), sentence(name)
    _, second, other_summary = sentence(name, seed=10)
    attributes, weights = set(vars(module)), {key: value.clone() for key, value in module.state_dict().items()}

    alone, _ = module(query, module.prepare(first, MASK, summary))
    one, two = module.prepare(first, MASK, summary), module.prepare(second, MASK, other_summary)
    assert not torch.equal(module(query, two)[0], alone)
    assert torch.equal(module(query, one)[0], alone)
    assert set(vars(module)) == attributes
    assert all(torch.equal(value, weights[key]) for key, value in module.state_dict().items())


@torch.no_grad()
def test_no_attention_returns_the_summary_without_weights() -> None:
    module, (query, values, summary) = attention("none"), sentence("none")
    context, weights = module(query, module.prepare(values, MASK, summary))
    assert weights is None
    assert context.shape == (3, 2, VALUE["none"])
    assert all(torch.equal(context[:, t], summary) for t in range(2))
    assert not list(module.parameters())
