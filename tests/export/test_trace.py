"""From a module to an ONNX model: names and axes as described, fp16 storage without another number, clear refusals."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edge_attn.errors import ExportError
from edge_attn.export.trace import IR_VERSION, example_inputs, store_as_fp16, trace
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


def described(values) -> dict[str, tuple[object, ...]]:
    return {
        value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
    }


def test_a_module_gets_the_names_and_axes_that_were_described():
    model = traced(Mean(), (X, LENGTH), (TensorSpec("mean", "float32", ("batch", 3)),))
    assert described(model.graph.input) == {"x": ("batch", "src", 4), "length": ("batch",)}
    assert described(model.graph.output) == {"mean": ("batch", 3)}
    assert model.ir_version == IR_VERSION == 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not model.graph.value_info
    assert not model.functions


def test_a_module_without_an_axis_for_time():
    model = traced(
        nn.Linear(4, 3), (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 3)),)
    )
    assert described(model.graph.output) == {"y": ("batch", 3)}


class Options(nn.Module):
    """A parameter that is not given, and tensors that are."""

    def forward(self, x: Tensor, scale: float = 2.0, *more: Tensor) -> Tensor:
        return x * scale


def test_parameters_with_a_default_may_be_left_out():
    traced(Options(), (X,), (TensorSpec("y", "float32", ("batch", "src", 4)),))


MEAN = TensorSpec("mean", "float32", ("batch", 3))
MISTAKES = {
    "another size": ((X, LENGTH), (TensorSpec("mean", "float32", ("batch", 5)),), "mean: an axis has size 3"),
    "another number of axes": ((X, LENGTH), (TensorSpec("mean", "float32", ("batch",)),), "mean is float32 of 2 axes"),
    "another type": ((X, LENGTH), (TensorSpec("mean", "int64", ("batch", 3)),), "mean is float32 of 2 axes"),
    "an axis for a size": (
        (X, LENGTH),
        (TensorSpec("mean", "float32", ("batch", "src")),),
        "axis 'src' came out frozen",
    ),
    "one output too many": (
        (X, LENGTH),
        (MEAN, TensorSpec("more", "float32", ("batch", 3))),
        "the module has 1 outputs, described were 2",
    ),
    "one input too few": ((X,), (MEAN,), "torch cannot export Mean"),
    "one input too many": ((X, LENGTH, LENGTH), (MEAN,), "torch cannot export Mean"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_description_that_does_not_fit(mistake):
    inputs, outputs, sentence = MISTAKES[mistake]
    with pytest.raises(ExportError, match=sentence):
        traced(Mean(), inputs, outputs)


class FirstThree(nn.Module):
    """Gives a batch of three whatever came in."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:1].expand(3, -1, -1) * 2


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Split(nn.Module):
    """Works for the traced length only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 7, 4) + 1


def test_an_axis_that_came_out_frozen():
    with pytest.raises(ExportError, match="y: axis 'batch' came out frozen at 3"):
        traced(FirstThree(), (X,), (TensorSpec("y", "float32", ("batch", "src", 4)),))
    with pytest.raises(ExportError):
        traced(Split(), (X,), (TensorSpec("y", "float32", ("batch", "src", 4)),))


def test_what_torch_cannot_export_is_named_by_its_path():
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), Branching()))
    with pytest.raises(ExportError, match=r"torch cannot export Sequential, in 1.1 \(Branching\): "):
        traced(module, (X,), (TensorSpec("y", "float32", ("batch", "src", 4)),))


def test_tracing_leaves_no_trace(capfd):
    disabled, filters = logging.root.manager.disable, list(warnings.filters)
    traced(Mean(), (X, LENGTH), (MEAN,))
    with pytest.raises(ExportError):
        traced(Branching(), (X,), (X,))
    assert (logging.root.manager.disable, warnings.filters) == (disabled, filters)
    assert capfd.readouterr().out == ""


def test_a_gradient_that_is_wanted_elsewhere_does_not_open_the_op():
    """While gradients are recorded our ops run as plain torch; an exported module holds the op all the same."""

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


def test_fp16_storage_keeps_every_number():
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
    found = onnx.reference.ReferenceEvaluator(model).run(None, {})
    for value, (name, expected) in zip(found, weights.items(), strict=True):
        assert np.array_equal(value, expected), name
        assert value.dtype == expected.dtype


# ---- example inputs


def test_example_inputs_fit_their_description():
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
    made = dict(zip((t.name for t in spec.inputs), example_inputs(spec, {"batch": 500, "src": 5}), strict=True))
    assert {name: (value.dtype.name, value.shape) for name, value in made.items()} == {
        "x": ("float32", (500, 5, 3)),
        "mask": ("bool", (500, 5)),
        "length": ("int64", (500,)),
        "parents": ("int32", (500, 2)),
        "kind": ("int64", (500,)),
        "wide": ("float64", (5,)),
    }
    assert set(made["length"]) == {1, 2, 3, 4, 5}
    assert set(made["parents"].ravel()) == {0, 1, 2, 3, 4}
    assert set(made["kind"]) == {0, 1, 2, 3}
    assert set(made["mask"].ravel()) == {True, False}
    again = example_inputs(spec, {"batch": 500, "src": 5})
    assert all(np.array_equal(a, b) for a, b in zip(again, made.values(), strict=True))
