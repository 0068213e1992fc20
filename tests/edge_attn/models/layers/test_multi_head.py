"""Multi-head attention equals torch's where torch defines it, and its equation elsewhere; also with a cache."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edge_attn import export_module
from edge_attn.errors import ConfigError
from edge_attn.models.layers.attention import Scaled
from edge_attn.models.layers.multi_head import MultiHead, SelfAttention, multi_head_dot_attention
from edge_attn.ops import multi_head as op
from edge_attn.spec import GraphSpec

torch.set_num_threads(1)

HEADS, SIZE, SLOTS = 3, 12, 6
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)


def random_tensor(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def split_heads(x: Tensor) -> Tensor:
    """Return x (batch, tgt, heads * size) as (batch, heads, tgt, size)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


# ---- the op


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("rows", [1, 2], ids=["unmasked", "masked"])
@pytest.mark.parametrize("tgt", [1, 3, 5])
@torch.no_grad()
def test_op_equals_torchs_scaled_dot_product_attention(tgt: int, rows: int, causal: int, dtype: torch.dtype) -> None:
    """Our causal rule equals torch's `is_causal`, which counts from the first key, for as many queries as keys."""
    query, keys, values = (random_tensor(rows, n, SIZE, seed=n, dtype=dtype) for n in (tgt, 5, 5))
    scale = 1 / math.sqrt(SIZE / HEADS)
    actual, _ = multi_head_dot_attention(query, keys, values, MASK[:rows], HEADS, scale, causal)
    sdpa = nn.functional.scaled_dot_product_attention
    if rows == 1 and tgt == 5:
        expected = sdpa(split_heads(query), split_heads(keys), split_heads(values), is_causal=bool(causal))
    else:
        mask = MASK[:rows, None, None, :] & (torch.ones(tgt, 5).tril(5 - tgt).bool() if causal else True)
        expected = sdpa(split_heads(query), split_heads(keys), split_heads(values), attn_mask=mask)
    torch.testing.assert_close(actual, expected.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [0, 1])
def test_gradient_is_correct(causal: int) -> None:
    """The first of six queries attends to none of five keys, and one row has no key."""
    floats = [random_tensor(3, n, SIZE, seed=i).requires_grad_() for i, n in enumerate((6, 5, 5))]

    def call(*inputs: Tensor) -> Any:
        return multi_head_dot_attention(*inputs, MASK, HEADS, 0.5, causal)

    assert torch.autograd.gradcheck(call, floats)
    for i in range(2):  # no backward function returns NaN either; anomaly mode is too slow for gradcheck
        with torch.autograd.set_detect_anomaly(True):
            output = call(*floats)[i]
            for gradient in (torch.ones_like(output), torch.zeros_like(output)):
                output.backward(gradient, retain_graph=True)


@torch.no_grad()
def test_last_queries_over_a_cache_equal_all_queries() -> None:
    query, keys, values = (random_tensor(3, 5, SIZE, seed=seed) for seed in range(3))
    context, weights = multi_head_dot_attention(query, keys, values, MASK, HEADS, 0.5, 1)
    for last in (1, 2, 4):
        part = multi_head_dot_attention(query[:, -last:], keys, values, MASK, HEADS, 0.5, 1)
        torch.testing.assert_close(part, (context[:, -last:], weights[:, :, -last:]), rtol=1e-12, atol=1e-12)


# ---- the row of ATTENTIONS


def attention(heads: int = HEADS) -> MultiHead:
    torch.manual_seed(0)
    return MultiHead(4, 7, SIZE, heads).double()


@torch.no_grad()
def test_cross_attention_follows_its_equation() -> None:
    module, query, values = attention(), random_tensor(3, 2, 4), random_tensor(3, 5, 7, seed=2)
    context, weights = module(query, module.prepare(values, MASK, values[:, 0]))
    w = {name: value.numpy().T for name, value in module.state_dict().items()}
    s, h = query.numpy(), values.numpy()
    heads, head_weights = op.oracle(
        s @ w["query.weight"],
        h @ w["keys.weight"],
        h @ w["values.weight"],
        MASK.numpy(),
        heads=HEADS,
        scale=1 / math.sqrt(SIZE / HEADS),
    )
    np.testing.assert_allclose(context, heads @ w["output.weight"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(weights, head_weights.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), MASK.any(1)[:, None].double().expand(3, 2))
    assert (context[2] == 0).all()
    assert (weights[2] == 0).all()


@torch.no_grad()
def test_one_head_equals_scaled_dot_attention() -> None:
    module, query, values = attention(heads=1), random_tensor(3, 2, 4), random_tensor(3, 5, 7, seed=2)
    memory = module.prepare(values, MASK, values[:, 0])
    context, weights = Scaled(SIZE, SIZE, SIZE)(module.query(query), memory)
    torch.testing.assert_close(module(query, memory), (module.output(context), weights), rtol=1e-12, atol=1e-12)


def test_indivisible_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 5 heads and attention_size 12"):
        attention(heads=5)
    with pytest.raises(ConfigError, match="got 5 heads"):
        SelfAttention(SIZE, 5)


# ---- self-attention


def self_attention() -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(SIZE, HEADS).double()


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_self_attention_equals_torchs_multi_head_attention(causal: bool) -> None:
    module, x, mask = self_attention(), random_tensor(2, 5, SIZE), MASK[:2]
    theirs = nn.MultiheadAttention(SIZE, HEADS, bias=False, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict({"in_proj_weight": module.input.weight, "out_proj.weight": module.output.weight})
    later = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    expected = theirs(x, x, x, key_padding_mask=~mask, attn_mask=later, average_attn_weights=False)
    torch.testing.assert_close(module(x, mask, causal), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("slots", [5, SLOTS, 20])
@torch.no_grad()
def test_cached_steps_equal_causal_attention(slots: int) -> None:
    module, x = self_attention(), random_tensor(3, 5, SIZE)
    expected, _ = module(x, torch.ones(3, 5, dtype=torch.bool), causal=True)
    state = module.start(3, slots)
    for t in range(5):
        output, state = module.step(x[:, t : t + 1], state)
        torch.testing.assert_close(output[:, 0], expected[:, t], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_full_cache_is_a_window_of_the_newest() -> None:
    module, x = self_attention(), random_tensor(3, 7, SIZE)
    state = module.start(3, 3)
    for t in range(7):
        output, state = module.step(x[:, t : t + 1], state)
        window = x[:, max(0, t - 2) : t + 1]
        expected, _ = module(window, torch.ones(window.shape[:2], dtype=torch.bool), causal=True)
        torch.testing.assert_close(output[:, 0], expected[:, -1], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_hypotheses_have_independent_caches() -> None:
    module, x = self_attention(), random_tensor(3, 2, 4, SIZE)
    state = {name: value.expand(-1, 2, *value.shape[2:]) for name, value in module.start(3, SLOTS).items()}
    together = []
    for x_t in x.unbind(2):
        output, state = module.step(x_t, state)
        together.append(output)
    for beam, row in itertools.product(range(2), range(3)):
        expected, _ = module(x[row : row + 1, beam], torch.ones(1, 4, dtype=torch.bool), causal=True)
        actual = torch.stack(together, 2)[row, beam]
        torch.testing.assert_close(actual, expected[0], rtol=1e-12, atol=1e-12)


# ---- export


class Step(nn.Module):
    """Self-attention one position at a time, with its cache as inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SelfAttention(SIZE, HEADS)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        state = {"keys": keys, "values": values, "count": count}
        output, following = self.attention.step(x, state)
        return (output, *(following[name] for name in state))


class Causal(SelfAttention):
    def forward(self, x: Tensor, mask: Tensor, causal: bool = True) -> tuple[Tensor, Tensor]:
        return super().forward(x, mask, causal)


class Cross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiHead(4, 7, SIZE, HEADS)

    def forward(self, query: Tensor, values: Tensor, mask: Tensor) -> Any:
        return self.attention(query, self.attention.prepare(values, mask, values[:, 0]))


CACHE = ("float32", ["batch", "beam", SLOTS, SIZE])
STATE = {"keys": CACHE, "values": CACHE, "count": ("int64", ["batch", "beam", 1], [0, 2 * SLOTS])}
X, POSITION = ("float32", ["batch", "src", SIZE]), ("float32", ["batch", "beam", SIZE])
REAL = ("bool", ["batch", "src"])
MODULES: dict[str, tuple[nn.Module, dict[str, Any], dict[str, Any]]] = {
    "cross": (
        Cross(),
        {"query": ("float32", ["batch", "tgt", 4]), "values": ("float32", ["batch", "src", 7]), "mask": REAL},
        {"context": ("float32", ["batch", "tgt", 7]), "weights": ("float32", ["batch", "tgt", "src"])},
    ),
    "self": (
        SelfAttention(SIZE, HEADS),
        {"x": X, "mask": REAL},
        {"output": X, "weights": ("float32", ["batch", HEADS, "src", "src"])},
    ),
    "causal": (
        Causal(SIZE, HEADS),
        {"x": X, "mask": REAL},
        {"output": X, "weights": ("float32", ["batch", HEADS, "src", "src"])},
    ),
    "step": (Step(), {"x": POSITION, **STATE}, {"output": POSITION, **{f"next_{n}": d[:2] for n, d in STATE.items()}}),
}


def exported(name: str, path: Path) -> GraphSpec:
    """Export the module; `export_module` compares it with torch at twelve shapes."""
    module, inputs, outputs = MODULES[name]
    spec: GraphSpec = export_module(module, path, inputs, outputs)
    return spec


@pytest.mark.parametrize("name", MODULES)
def test_export_is_one_node(name: str, tmp_path: Path) -> None:
    exported(name, tmp_path / "module.onnx")
    nodes = onnx.load(tmp_path / "module.onnx").graph.node
    assert [node.op_type for node in nodes if node.domain == "edge_attn"] == ["MultiHeadDotAttention"]
    assert "Softmax" not in {node.op_type for node in nodes}


@torch.no_grad()
def test_exported_steps_equal_causal_attention(tmp_path: Path) -> None:
    exported("step", tmp_path / "step.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
    module, x = MODULES["step"][0].attention, random_tensor(2, SLOTS, SIZE, dtype=torch.float32)
    expected, _ = module(x, torch.ones(2, SLOTS, dtype=torch.bool), causal=True)
    state = [value.numpy() for value in module.start(2, SLOTS).values()]
    for t in range(SLOTS):
        inputs = dict(zip(("x", *STATE), (x[:, t : t + 1].numpy(), *state), strict=True))
        output, *state = session.run(None, inputs)
        np.testing.assert_allclose(output[:, 0], expected[:, t], rtol=1e-5, atol=1e-6)


@pytest.mark.rtx
@pytest.mark.parametrize("name", MODULES)
def test_tensorrt_builds_the_export(name: str, tmp_path: Path, build_with_tensorrt: Any) -> None:
    spec = exported(name, tmp_path / "module.onnx")
    build_with_tensorrt(onnx.load(tmp_path / "module.onnx"), spec)
