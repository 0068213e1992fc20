"""Tests of export_module: a module of the user is exported like our models, or nothing is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import onnx
import pytest
import torch
from plain_onnxruntime import assert_matches_in_plain_onnxruntime
from torch import Tensor, nn

import edge_attn
from edge_attn.errors import ExportError, InputError
from edge_attn.export import lower
from edge_attn.models.layers.attention import Additive, General
from edge_attn.models.layers.recurrent import RecurrentLayer
from edge_attn.ops import DOMAIN

torch.set_num_threads(1)


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Reader(nn.Module):
    """An embedding, two bidirectional layers, and attention of one query over them."""

    def __init__(self, cell: str, attention: type[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 6)
        self.layers = nn.ModuleList([RecurrentLayer(cell, 6, 4), RecurrentLayer(cell, 8, 4)])
        self.attention = attention(8, 8, 5)

    def forward(self, tokens: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        values = self.embedding(tokens)
        for layer in self.layers:
            values, (last, *_) = layer(values, length)
        mask = torch.arange(tokens.shape[1])[None, :] < length[:, None]
        context, weights = self.attention(last[:, None], self.attention.prepare(values, mask, last))
        return context[:, 0], weights[:, 0]


class AttentionOnly(nn.Module):
    """Additive attention alone, with tensors as inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Additive(6, 8, 5)

    def forward(self, query: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(query, self.attention.prepare(values, mask, values[:, 0]))


TOKENS = {"tokens": ("int64", ["batch", "src"], [0, 49]), "length": ("int64", ["batch"], [0, "src"])}
READ = {"context": ("float32", ["batch", 8]), "weights": ("float32", ["batch", "src"])}
X = {"x": ("float32", ["batch", "src", 6]), "length": ("int64", ["batch"], [0, "src"])}
MODULES = {
    "additive attention": (
        AttentionOnly,
        {
            "query": ("float32", ["batch", "tgt", 6]),
            "values": ("float32", ["batch", "src", 8]),
            "mask": ("bool", ["batch", "src"]),
        },
        {"context": ("float32", ["batch", "tgt", 8]), "weights": ("float32", ["batch", "tgt", "src"])},
        ["AdditiveAttention"],
    ),
    "a bidirectional LSTM": (
        lambda: RecurrentLayer("lstm", 6, 4),
        X,
        {
            "output": ("float32", ["batch", "src", 8]),
            "last": ("float32", ["batch", 8]),
            "last_cell": ("float32", ["batch", 8]),
        },
        ["Lstm"],
    ),
    "a stacked reader": (lambda: Reader("gru", Additive), TOKENS, READ, ["AdditiveAttention", "Gru"]),
    "another stacked reader": (lambda: Reader("lstm", General), TOKENS, READ, ["DotAttention", "Lstm"]),
    "no layer of ours": (lambda: nn.Linear(6, 2), {"x": X["x"]}, {"y": ("float32", ["batch", "src", 2])}, []),
}


@pytest.mark.parametrize("name", MODULES)
def test_user_module_exports(tmp_path, name):
    make, inputs, outputs, functions = MODULES[name]
    torch.manual_seed(6)
    module = make()
    path = tmp_path / "own.onnx"
    spec = edge_attn.export_module(module, str(path), inputs, outputs)
    assert file_names(tmp_path) == ["own.onnx"]
    assert [tensor.name for tensor in spec.outputs] == list(outputs)
    model = onnx.load_model(path)
    assert (model.ir_version, len(model.graph.value_info)) == (10, 0)
    assert [function.name for function in model.functions] == functions
    flat: nn.Module = module
    if isinstance(module, RecurrentLayer):

        class Flat(nn.Module):
            def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
                output, last = module(*inputs)
                return (output, *last)

        flat = Flat()
    assert_matches_in_plain_onnxruntime(path.read_bytes(), flat, spec, tmp_path)


class Unused(nn.Module):
    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        return 2 * x


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Foreign(nn.Module):
    """Calls an op of another library."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.edge_attn_tests.foreign(x)


Y = {"y": ("float32", ["batch", "src", 6])}
ONE = {"x": X["x"]}


def broken(value: float) -> nn.Module:
    module = nn.Linear(6, 6)
    with torch.no_grad():
        module.bias[2] = value
    return module


FAULTS = {
    "an unused input": (Unused, X, Y, "does not use its input length"),
    "a NaN": (lambda: broken(float("nan")), ONE, Y, "bias has 1 weights that are NaN or infinite"),
    "an infinity": (lambda: broken(float("inf")), ONE, Y, "bias has 1 weights that are NaN or infinite"),
    "a branch on data": (
        lambda: nn.Sequential(nn.Tanh(), nn.Sequential(Branching())),
        ONE,
        Y,
        r"export Sequential, in 1\.0 \(Branching\), .*test_export_module.py:\d+: it branches on the values",
    ),
    "another size": (
        nn.Tanh,
        ONE,
        {"y": ("float32", ["batch", "src", 7])},
        r"torch at batch 2, src 7: y has shape \(2, 7, 6\), expected y float32 \(batch, src, 7\)",
    ),
    "another axis": (nn.Tanh, ONE, {"y": ("float32", ["src", "batch", 6])}, "expected y float32"),
    "an unknown dtype": (nn.Tanh, {"x": ("float31", ["batch", 6])}, Y, "x: expected a dtype, a shape"),
    "no shape": (nn.Tanh, {"x": ("float32",)}, Y, "x: expected a dtype, a shape"),
    "too much": (nn.Tanh, {"x": ("int64", ["batch"], [0, 1], 3)}, Y, "x: expected a dtype, a shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failed_export_writes_nothing(tmp_path, fault):
    make, inputs, outputs, sentence = FAULTS[fault]
    with pytest.raises(ExportError, match=sentence) as failed:
        edge_attn.export_module(make(), tmp_path / "own.onnx", inputs, outputs)
    assert failed.value.exit_code == 4
    assert not file_names(tmp_path)


def test_op_of_another_library_fails(tmp_path, monkeypatch):
    """An op of another library, translated to a node of another domain by the table of torch.onnx."""
    import onnxscript

    library = torch.library.Library("edge_attn_tests", "DEF")
    library.define("foreign(Tensor x) -> Tensor")
    library.impl("foreign", lambda x: x + 1, "CompositeExplicitAutograd")
    torch.library.register_fake("edge_attn_tests::foreign", torch.empty_like, lib=library)
    for domain in ("com.example", DOMAIN):
        opset = onnxscript.values.Opset(domain, 1)
        table = {torch.ops.edge_attn_tests.foreign.default: lambda x, opset=opset: opset.ForeignOp(x)}
        monkeypatch.setattr(lower, "translations", lambda table=table: table)
        with pytest.raises(ExportError, match="ForeignOp"):
            edge_attn.export_module(Foreign(), tmp_path / "own.onnx", ONE, Y)
        assert not file_names(tmp_path)


def test_unwritable_file_leaves_nothing(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"own.onnx cannot be written: No space left on device"):
        edge_attn.export_module(nn.Tanh(), tmp_path / "own.onnx", ONE, Y)
    assert not file_names(tmp_path)


def test_module_trains_after_export():
    """The ops stay differentiable: the export freezes nothing."""
    module = AttentionOnly()
    context, _ = module(torch.ones(1, 2, 6), torch.rand(1, 3, 8), torch.ones(1, 3, dtype=torch.bool))
    context.sum().backward()
    assert module.attention.v.grad is not None
