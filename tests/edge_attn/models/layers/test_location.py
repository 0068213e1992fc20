"""Location-based attention, for sentences shorter and longer than W."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edge_attn
from edge_attn.config.models import Seq2SeqConfig
from edge_attn.models.layers.location import Location
from edge_attn.models.layers.normalizers import NORMALIZERS, context_and_weights
from edge_attn.models.seq2seq import make_attention
from edge_attn.ops.location import oracle

torch.set_num_threads(1)

HIDDEN, VALUE, POSITIONS = 6, 5, 4
SOURCES = (1, 3, POSITIONS, 7)
"""Source lengths shorter than W, as long as W and longer."""


def location() -> Location:
    torch.manual_seed(0)
    return Location(HIDDEN, VALUE, 8, positions=POSITIONS).double()


def sentence(src: int, tgt: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, values and mask: a full row, a row of one token, an empty row."""
    torch.manual_seed(src)
    lengths = torch.tensor([src, 1, 0])
    query, values = torch.randn(3, tgt, HIDDEN).double(), torch.randn(3, src, VALUE).double()
    return query, values, torch.arange(src) < lengths[:, None]


@pytest.mark.parametrize("src", SOURCES)
@torch.no_grad()
def test_layer_follows_its_equation(src: int) -> None:
    module, (query, values, mask) = location(), sentence(src)
    context, weights = module(query, module.prepare(values, mask, values[:, 0]))
    expected = oracle(query.numpy(), module.w.numpy(), values.numpy(), mask.numpy())
    np.testing.assert_allclose(context, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(weights, expected[1], rtol=1e-12, atol=1e-12)
    assert (weights[:, :, POSITIONS:] == 0).all()
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(3).double())


def test_oracle_follows_luongs_equation() -> None:
    """Compare with a_t = softmax(W h_t), whose first rows a short sentence uses."""
    module, (query, values, mask) = location(), sentence(3)
    _, weights = oracle(query.numpy(), module.w.detach().numpy(), values.numpy(), mask.numpy())
    expected = (query[0] @ module.w.T)[:, :3].softmax(-1).detach()
    np.testing.assert_allclose(weights[0], expected, rtol=1e-12)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("src", SOURCES)
@torch.no_grad()
def test_weights_are_zero_past_w(src: int, normalizer: str) -> None:
    module, (query, values, mask) = location(), sentence(src)
    memory = module.prepare(values, mask, values[:, 0])
    _, weights = context_and_weights(module.energy(query, memory), values, memory["mask"], normalizer)
    assert (weights[:, :, POSITIONS:] == 0).all()
    module.normalizer = normalizer
    torch.testing.assert_close(module(query, memory)[1], weights)


@torch.no_grad()
def test_weights_are_independent_of_the_source() -> None:
    module, (query, values, mask) = location(), sentence(POSITIONS)
    context, weights = module(query, module.prepare(values, mask, values[:, 0]))
    other, same = module(query, module.prepare(values.flip(1), mask, values[:, 0]))
    assert torch.equal(weights, same)
    assert not torch.equal(context, other)


def test_rows_past_the_sentence_have_no_gradient() -> None:
    module, (query, values, mask) = location(), sentence(2)
    context, _ = module(query, module.prepare(values, mask, values[:, 0]))
    context.square().sum().backward()
    assert module.w.grad is not None
    assert (module.w.grad[:2] != 0).all()
    assert (module.w.grad[2:] == 0).all()


@torch.no_grad()
def test_projected_values_give_projected_contexts() -> None:
    module, (query, values, mask) = location(), sentence(3)
    memory, weight = module.prepare(values, mask, values[:, 0]), torch.randn(2, VALUE).double()
    context, weights = module(query, memory)
    projected = module.project_values(memory, weight)
    assert projected is not None
    torch.testing.assert_close(module(query, projected), (context @ weight.T, weights))


def test_positions_come_from_the_configuration() -> None:
    module = make_attention(Seq2SeqConfig(attention="location", positions=17), HIDDEN, VALUE)
    assert isinstance(module, Location)
    assert module.w.shape == (17, HIDDEN)


class LocationLayer(nn.Module):
    """A user's module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = location().float()

    def forward(self, query: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        context, weights = self.attention(query, self.attention.prepare(values, mask, values[:, 0]))
        return context, weights


@torch.no_grad()
def test_export_equals_torch_at_every_length(tmp_path: Path) -> None:
    module = LocationLayer()
    inputs = {
        "query": ("float32", ["batch", "tgt", HIDDEN]),
        "values": ("float32", ["batch", "src", VALUE]),
        "mask": ("bool", ["batch", "src"]),
    }
    outputs = {"context": ("float32", ["batch", "tgt", VALUE]), "weights": ("float32", ["batch", "tgt", "src"])}
    edge_attn.export_module(module, tmp_path / "location.onnx", inputs, outputs)
    session = onnxruntime.InferenceSession(tmp_path / "location.onnx", providers=["CPUExecutionProvider"])
    for src in (*SOURCES, 50):
        query, values, mask = sentence(src)
        tensors = (query.float(), values.float(), mask)
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)})
        for ours, theirs in zip(outputs, module(*tensors), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
            assert (ours[theirs.numpy() == 0] == 0).all()
