"""Attention pooling, in a user's classifier and as the context of every step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edge_attn
from edge_attn.config.models import Seq2SeqConfig
from edge_attn.errors import ConfigError
from edge_attn.models.layers.normalizers import sparsemax
from edge_attn.models.layers.pooling import PooledAttention, Pooling
from edge_attn.models.seq2seq import make_attention
from edge_attn.ops.pooling import oracle

torch.set_num_threads(1)

VALUE, ATTN, SRC, QUERY = 5, 6, 4, 3
MASK = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)


def values(seed: int = 0) -> Tensor:
    return torch.randn(3, SRC, VALUE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooling() -> Pooling:
    torch.manual_seed(0)
    return Pooling(VALUE, ATTN).double()


def pooled(normalizer: str = "softmax") -> PooledAttention:
    torch.manual_seed(0)
    module = PooledAttention(QUERY, VALUE, ATTN).double()
    module.normalizer = normalizer
    return module


@torch.no_grad()
def test_layer_follows_its_equation() -> None:
    module, h = pooling(), values()
    context, weights = module(h, MASK)
    p = {name: value.numpy() for name, value in module.named_parameters()}
    expected = oracle(h.numpy(), MASK.numpy(), p["hidden.weight"], p["hidden.bias"], p["u"])
    np.testing.assert_allclose(context, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(weights, expected[1], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_oracle_follows_the_papers_equations() -> None:
    """Compare row by row, without a mask, with Yang et al. 2016, equations 5 to 7."""
    module, h = pooling(), values()
    context, weights = oracle(h.numpy(), MASK.numpy(), *(p.numpy() for p in module.hidden.parameters()), module.u)
    for row in range(2):
        real = h[row, MASK[row]]
        alpha = (torch.tanh(real @ module.hidden.weight.T + module.hidden.bias) @ module.u).softmax(0)
        np.testing.assert_allclose(weights[row, MASK[row]], alpha, rtol=1e-12)
        np.testing.assert_allclose(context[row], alpha @ real, rtol=1e-12)


@torch.no_grad()
def test_padding_is_ignored_and_empty_row_is_zero() -> None:
    module, h = pooling(), values()
    context, weights = module(h, MASK)
    changed = h.masked_fill(~MASK[:, :, None], 1e3)
    torch.testing.assert_close(module(changed, MASK), (context, weights), rtol=0, atol=0)
    assert (weights[~MASK] == 0).all()
    assert (context[2] == 0).all()


def test_gradients_are_correct_and_reach_every_parameter() -> None:
    module, h = pooling(), values().requires_grad_()
    assert torch.autograd.gradcheck(lambda h: module(h, MASK), (h,))
    context, weights = module(h, MASK)
    (context.square().sum() + weights.square().sum()).backward()
    assert h.grad is not None
    assert (h.grad[~MASK] == 0).all()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


class Classifier(nn.Module):
    """A user's module, from tokens to class log-probabilities and token weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, VALUE)
        self.pooling = Pooling(VALUE, ATTN)
        self.output = nn.Linear(VALUE, 3)

    def forward(self, tokens: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.arange(tokens.shape[1], device=tokens.device) < length[:, None]
        context, weights = self.pooling(self.embedding(tokens), mask)
        return torch.log_softmax(self.output(context), -1), weights


@torch.no_grad()
def test_exported_classifier_is_one_node_and_equals_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Classifier()
    edge_attn.export_module(
        module,
        tmp_path / "classifier.onnx",
        {"tokens": ("int64", ["batch", "src"], [0, 19]), "length": ("int64", ["batch"], [0, "src"])},
        {"log_probs": ("float32", ["batch", 3]), "weights": ("float32", ["batch", "src"])},
    )
    model = onnx.load(tmp_path / "classifier.onnx")
    assert [node.op_type for node in model.graph.node if node.domain == "edge_attn"] == ["AttentionPooling"]
    session = onnxruntime.InferenceSession(tmp_path / "classifier.onnx", providers=["CPUExecutionProvider"])
    for batch, src in ((1, 1), (3, 9), (5, 50)):
        tokens, length = torch.randint(20, (batch, src)), torch.randint(src + 1, (batch,))
        outputs = session.run(None, {"tokens": tokens.numpy(), "length": length.numpy()})
        for ours, theirs in zip(outputs, module(tokens, length), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
            assert (ours[theirs.numpy() == 0] == 0).all()


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax"])
@torch.no_grad()
def test_attention_is_the_same_at_every_step(normalizer: str) -> None:
    module, h = pooled(normalizer), values()
    memory = module.prepare(h, MASK, h[:, 0])
    context, weights = module(torch.randn(3, 2, QUERY).double(), memory)
    energy = torch.tanh(module.pooling.hidden(h)) @ module.pooling.u
    softmax = energy.masked_fill(~MASK, float("-inf")).softmax(-1).nan_to_num()
    expected = softmax if normalizer == "softmax" else sparsemax(energy, MASK)
    assert weights is not None
    for t in range(2):
        torch.testing.assert_close(weights[:, t], expected)
        torch.testing.assert_close(context[:, t], (expected[:, :, None] * h).sum(1))


@torch.no_grad()
def test_projected_values_give_projected_contexts() -> None:
    module, h, weight = pooled(), values(), torch.randn(2, VALUE).double()
    memory, query = module.prepare(h, MASK, h[:, 0]), torch.randn(3, 2, QUERY).double()
    context, weights = module(query, memory)
    projected = module.project_values(memory, weight)
    assert projected is not None
    torch.testing.assert_close(module(query, projected), (context @ weight.T, weights))


@pytest.mark.parametrize("option", [{"coverage": True}, {"focus": "local-m", "window": 2}, {"focus": "hard"}], ids=str)
def test_wrapper_of_pooling_is_refused(option: dict[str, object]) -> None:
    """Pooling has no energy that depends on a query."""
    with pytest.raises(ConfigError, match="attention = 'pooling' has no energy for each source position"):
        make_attention(Seq2SeqConfig(attention="pooling", **option), QUERY, VALUE)  # type: ignore[arg-type]
