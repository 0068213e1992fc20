"""Tests of edge_attn.export.trace: names and axes of the spec, fp16 storage without loss, clear errors."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edge_attn.errors import ExportError
from edge_attn.export.shapes import example_inputs
from edge_attn.export.trace import IR_VERSION, store_as_fp16, trace
from edge_attn.models.layers import torch_ops
from edge_attn.spec import GraphSpec, TensorSpec

torch.set_num_threads(1)

X = TensorSpec("x", "float32", ("batch", "src", 4))
LENGTH = TensorSpec("length", "int64", ("batch",), (0, "src"))


class Mean(nn.Module):
    """(batch, src, 4), lengths -> (batch, 3): a projected mean over the real positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 3), nn.Tanh())

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        mask = torch.arange(x.shape[1])[None, :, None] < length[:, None, None]
        return (self.inner(x) * mask).sum(1) / length.clamp(min=1)[:, None]


def traced(module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> onnx.ModelProto:
    spec = GraphSpec("x.onnx", inputs, outputs)
    sizes = {"batch": 2, "src": 7, "beam": 3}
    return trace(module, spec, [torch.from_numpy(value) for value in example_inputs(spec, sizes)])


def axes_by_name(values) -> dict[str, tuple[object, ...]]:
    return {
        value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
    }


def test_model_has_names_and_axes_of_the_spec():
    model = traced(Mean(), (X, LENGTH), (TensorSpec("mean", "float32", ("batch", 3)),))
    assert axes_by_name(model.graph.input) == {"x": ("batch", "src", 4), "length": ("batch",)}
    assert axes_by_name(model.graph.output) == {"mean": ("batch", 3)}
    assert model.ir_version == IR_VERSION == 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not model.graph.value_info
    assert not model.functions


def test_model_contains_no_path_of_this_machine():
    model = traced(Mean(), (X, LENGTH), (TensorSpec("mean", "float32", ("batch", 3)),))
    keys = {entry.key for node in model.graph.node for entry in node.metadata_props}
    assert "pkg.torch.onnx.name_scopes" in keys  # names the module of a node
    assert __file__.encode() not in model.SerializeToString()
    assert b"test_trace.py" not in model.SerializeToString()


def test_module_without_time_axis():
    model = traced(
        nn.Linear(4, 3), (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 3)),)
    )
    assert axes_by_name(model.graph.output) == {"y": ("batch", 3)}


class Options(nn.Module):
    """A parameter with a default before variable tensors."""

    def forward(self, x: Tensor, scale: float = 2.0, *more: Tensor) -> Tensor:
        return x * scale


def test_parameter_with_default_may_be_omitted():
    traced(Options(), (X,), (TensorSpec("y", "float32", ("batch", "src", 4)),))


MEAN = TensorSpec("mean", "float32", ("batch", 3))
MISTAKES = {
    "another size": ((X, LENGTH), (TensorSpec("mean", "float32", ("batch", 5)),), "mean: an axis has size 3"),
    "more axes": (
        (X, LENGTH),
        (TensorSpec("mean", "float32", ("batch",)),),
        "mean is float32 with 2 axes",
    ),
    "another type": ((X, LENGTH), (TensorSpec("mean", "int64", ("batch", 3)),), "mean is float32 with 2 axes"),
    "an axis for a size": (
        (X, LENGTH),
        (TensorSpec("mean", "float32", ("batch", "src")),),
        "axis 'src' has the fixed size",
    ),
    "one output too many": (
        (X, LENGTH),
        (MEAN, TensorSpec("more", "float32", ("batch", 3))),
        "the module has 1 outputs, expected 2",
    ),
    "one input too few": ((X,), (MEAN,), "torch cannot export Mean"),
    "one input too many": ((X, LENGTH, LENGTH), (MEAN,), "torch cannot export Mean"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_spec_fails(mistake):
    inputs, outputs, sentence = MISTAKES[mistake]
    with pytest.raises(ExportError, match=sentence):
        traced(Mean(), inputs, outputs)


class FirstThree(nn.Module):
    """Returns a batch of three for every input."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:1].expand(3, -1, -1) * 2


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Split(nn.Module):
    """Works for the traced length only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 7, 4) + 1


def test_fixed_axis_fails():
    with pytest.raises(ExportError, match="y: axis 'batch' has the fixed size 3"):
        traced(FirstThree(), (X,), (TensorSpec("y", "float32", ("batch", "src", 4)),))
    with pytest.raises(ExportError):
        traced(Split(), (X,), (TensorSpec("y", "float32", ("batch", "src", 4)),))


def test_failing_submodule_is_named_by_its_path():
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), Branching()))
    with pytest.raises(ExportError, match=r"torch cannot export Sequential, in 1.1 \(Branching\): "):
        traced(module, (X,), (TensorSpec("y", "float32", ("batch", "src", 4)),))


def test_tracing_restores_logging_and_warnings(capfd):
    disabled, filters = logging.root.manager.disable, list(warnings.filters)
    traced(Mean(), (X, LENGTH), (MEAN,))
    with pytest.raises(ExportError):
        traced(Branching(), (X,), (X,))
    assert (logging.root.manager.disable, warnings.filters) == (disabled, filters)
    assert capfd.readouterr().out == ""


def test_op_is_exported_while_gradients_are_recorded():
    """Our ops run as plain torch while gradients are recorded, but the exported module contains the op."""

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            mask = x[:, :, 0] > -9
            return torch_ops.additive_attention(x, x, x, mask, self.v)[0]

    with torch.enable_grad():
        model = traced(Attend(), (X,), (TensorSpec("context", "float32", ("batch", "src", 4)),))
    assert "AdditiveAttention" in {node.op_type for node in model.graph.node}
    assert [function.name for function in model.functions] == ["AdditiveAttention"]


# ---- fp16 storage


def with_weights(**weights: np.ndarray) -> onnx.ModelProto:
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    nodes = [onnx.helper.make_node("Identity", [name], [f"{name}.out"]) for name in weights]
    outputs = [
        onnx.helper.make_tensor_value_info(f"{n}.out", tensors[i].data_type, weights[n].shape)
        for i, n in enumerate(weights)
    ]
    graph = onnx.helper.make_graph(nodes, "weights", [], outputs, tensors)
    return onnx.helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", 18)])


def test_fp16_storage_preserves_every_number():
    random = np.random.default_rng(0)
    halves = random.standard_normal((40, 20)).astype(np.float16).astype(np.float32)
    weights = {
        "halves": halves,
        "tiny": np.full((40, 20), np.float16(6e-8), np.float32),
        "singles": random.standard_normal((40, 20)).astype(np.float32),
        "large": halves * np.float32(1e5),
        "small": halves[:1, :5].copy(),
        "integers": np.arange(800),
    }
    model = with_weights(**weights)
    before = len(model.SerializeToString())
    store_as_fp16(model)
    onnx.checker.check_model(model, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    half = onnx.TensorProto.FLOAT16
    assert {name for name, kind in kinds.items() if kind == half} == {"halves.fp16", "tiny.fp16"}
    assert kinds.keys() == {"halves.fp16", "tiny.fp16", *(weights.keys() - {"halves", "tiny"})}
    assert len(model.SerializeToString()) < before - 2 * 1500
    actual = onnx.reference.ReferenceEvaluator(model).run(None, {})
    for value, (name, expected) in zip(actual, weights.items(), strict=True):
        assert np.array_equal(value, expected), name
        assert value.dtype == expected.dtype


# ---- example inputs


def test_example_inputs_fit_the_spec():
    spec = GraphSpec(
        "",
        (
            TensorSpec("x", "float32", ("batch", "src", 3)),
            TensorSpec("mask", "bool", ("batch", "src")),
            TensorSpec("length", "int64", ("batch",), (1, "src")),
            TensorSpec("parents", "int32", ("batch", 2), (0, "src-1")),
            TensorSpec("kind", "int64", ("batch",)),
            TensorSpec("wide", "float64", ("src",)),
        ),
        (),
    )
    inputs = dict(zip((t.name for t in spec.inputs), example_inputs(spec, {"batch": 500, "src": 5}), strict=True))
    assert {name: (value.dtype.name, value.shape) for name, value in inputs.items()} == {
        "x": ("float32", (500, 5, 3)),
        "mask": ("bool", (500, 5)),
        "length": ("int64", (500,)),
        "parents": ("int32", (500, 2)),
        "kind": ("int64", (500,)),
        "wide": ("float64", (5,)),
    }
    assert set(inputs["length"]) == {1, 2, 3, 4, 5}
    assert set(inputs["parents"].ravel()) == {0, 1, 2, 3, 4}
    assert set(inputs["kind"]) == {0, 1, 2, 3}
    assert set(inputs["mask"].ravel()) == {True, False}
    again = example_inputs(spec, {"batch": 500, "src": 5})
    assert all(np.array_equal(a, b) for a, b in zip(again, inputs.values(), strict=True))
