"""Tests of edge_attn.export.checks: each check fails for the fault that it exists for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edge_attn.errors import ExportError
from edge_attn.export import checks
from edge_attn.export.shapes import example_inputs
from edge_attn.export.trace import trace
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.recurrent import RecurrentLayer
from edge_attn.spec import GraphSpec, TensorSpec

torch.set_num_threads(1)


class Attend(nn.Module):
    """Attention over a projection, and the index of the largest weight."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Linear(4, 4)

    def forward(self, query: Tensor, values: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.arange(values.shape[1])[None, :] < length[:, None]
        context, weights = torch_ops.dot_attention(query, self.keys(values), values, mask, 0.5)
        return context, weights.argmax(-1)


SPEC = GraphSpec(
    "attend.onnx",
    (
        TensorSpec("query", "float32", ("batch", "tgt", 4)),
        TensorSpec("values", "float32", ("batch", "src", 4)),
        TensorSpec("length", "int64", ("batch",), (1, "src")),
    ),
    (TensorSpec("context", "float32", ("batch", "tgt", 4)), TensorSpec("best", "int64", ("batch", "tgt"))),
)


@pytest.fixture(scope="module")
def module() -> Attend:
    torch.manual_seed(1)
    return Attend()


@pytest.fixture(scope="module")
def exported(module) -> onnx.ModelProto:
    example = example_inputs(SPEC, {"batch": 2, "src": 7, "tgt": 3})
    return trace(module, SPEC, [torch.from_numpy(value) for value in example])


def test_correct_graph_passes(module, exported):
    checks.finite(module)
    checks.structure("attend", exported, SPEC)
    assert checks.agreement("attend", exported, SPEC, module) < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weight_fails(module, value):
    broken = copy.deepcopy(module)
    with torch.no_grad():
        broken.keys.weight[1, 2:] = value
    with pytest.raises(ExportError, match=r"keys.weight has 2 weights that are NaN or infinite"):
        checks.finite(broken)


# ---- structure


def changed(model: onnx.ModelProto, change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    copied = copy.deepcopy(model)
    change(copied)
    return copied


def attention_node(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == "DotAttention")


def drop_attribute(model: onnx.ModelProto) -> None:
    node = attention_node(model)
    remaining = [attribute for attribute in node.attribute if attribute.name != "plugin_namespace"]
    del node.attribute[:]
    node.attribute.extend(remaining)


def add_unused_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch"]))


def add_foreign_op(model: onnx.ModelProto) -> None:
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    model.graph.node.append(onnx.helper.make_node("Gelu", ["context"], ["more"], domain="com.microsoft"))


def add_foreign_op_in_branch(model: onnx.ModelProto) -> None:
    """Add a foreign op inside a branch of an If."""
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    out = onnx.helper.make_tensor_value_info("branch", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node("Gelu", ["context"], ["branch"], domain="com.microsoft")
    branch = onnx.helper.make_graph([node], "branch", [], [out])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "condition"))
    model.graph.node.append(
        onnx.helper.make_node("If", ["condition"], ["more"], then_branch=branch, else_branch=branch)
    )


def lower_opset(model: onnx.ModelProto) -> None:
    next(entry for entry in model.opset_import if entry.domain == "").version = 17


def add_cycle(model: onnx.ModelProto) -> None:
    attention_node(model).input[0] = attention_node(model).output[0]


MORE = TensorSpec("more", "float32", ("batch",))
STRUCTURE = {
    "an unused input": (add_unused_input, "the graph attend does not use its input more"),
    "a foreign op": (add_foreign_op, "calls com.microsoft::Gelu, which is neither in ONNX nor in edge-attn"),
    "a foreign op in a branch": (
        add_foreign_op_in_branch,
        "calls com.microsoft::Gelu, which is neither in ONNX nor in edge-attn",
    ),
    "an unknown op of our domain": (
        lambda model: setattr(attention_node(model), "op_type", "SoftAttention"),
        "SoftAttention",
    ),
    "a call without its attribute": (drop_attribute, "the call of DotAttention breaks the call rules"),
    "a call without an output's name": (
        lambda m: attention_node(m).output.__setitem__(1, ""),
        "is not valid|breaks the call",
    ),
    "an older opset": (lower_opset, "has opset 17, expected 18|is not valid ONNX"),
    "a cycle": (add_cycle, "the graph attend is not valid ONNX: "),
}


@pytest.mark.parametrize("fault", STRUCTURE)
def test_broken_structure_fails(exported, fault):
    change, sentence = STRUCTURE[fault]
    spec = GraphSpec(SPEC.file, (*SPEC.inputs, MORE), SPEC.outputs) if fault == "an unused input" else SPEC
    with pytest.raises(ExportError, match=sentence):
        checks.structure("attend", changed(exported, change), spec)


def test_input_of_a_branch_counts_as_used(exported):
    def change(model: onnx.ModelProto) -> None:
        add_unused_input(model)
        out = onnx.helper.make_tensor_value_info("branch", onnx.TensorProto.FLOAT, ["batch"])
        branch = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["more"], ["branch"])], "branch", [], [out])
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "condition"))
        node = onnx.helper.make_node("If", ["condition"], ["negated"], then_branch=branch, else_branch=branch)
        model.graph.node.append(node)

    checks.structure("attend", changed(exported, change), GraphSpec("", (*SPEC.inputs, MORE), SPEC.outputs))


# ---- agreement


def shift_weight(model: onnx.ModelProto) -> None:
    weight = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [4, 4])
    values = onnx.numpy_helper.to_array(weight) + np.float32(0.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def negate_input(kind: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == kind)
        if kind == "ArgMax":
            node.op_type = "ArgMin"
        node.input[0], before = f"{node.input[0]}.negated", node.input[0]
        model.graph.node.insert(
            list(model.graph.node).index(node), onnx.helper.make_node("Neg", [before], [node.input[0]])
        )
        if kind == "ArgMax":
            node.op_type = "ArgMax"

    return change


def add_log(model: onnx.ModelProto) -> None:
    """Apply Log, so that negative values become NaN."""
    model.graph.node.insert(0, onnx.helper.make_node("Log", ["values"], ["values.log"]))
    node = attention_node(model)
    node.input[2] = "values.log"


def reduce_length(model: onnx.ModelProto) -> None:
    """Return another shape than torch at every length but one."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 1, 4]), "one"))
    node = attention_node(model)
    node.output[0] = "whole"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["whole", "axis"], ["context"], keepdims=1))


def fix_length(model: onnx.ModelProto) -> None:
    """Reshape so that only the traced length runs."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 7, 4]), "seven"))
    model.graph.node.insert(0, onnx.helper.make_node("Reshape", ["values", "seven"], ["values.seven"]))
    attention_node(model).input[2] = "values.seven"


def drop_functions(model: onnx.ModelProto) -> None:
    del model.functions[:]


AGREEMENT = {
    "another weight": (shift_weight, "context differs from torch by .*; values up to .* may differ by "),
    "another integer": (negate_input("ArgMax"), r"\d+ of \d+ integers differ from torch"),
    "a NaN": (add_log, "context is nan at .* where torch returns "),
    "another shape": (reduce_length, r"context has shape \(1, 1, 4\), torch returns \(1, \d, 4\)"),
    "only one length runs": (fix_length, "the graph attend at batch 1, src 1, tgt .* does not run: "),
    "an op without function body": (drop_functions, "ONNX Runtime does not load the graph attend: "),
}


@pytest.mark.parametrize("fault", AGREEMENT)
def test_graph_that_differs_from_torch_fails(module, exported, fault):
    change, sentence = AGREEMENT[fault]
    with pytest.raises(ExportError, match=sentence):
        checks.agreement("attend", changed(exported, change), SPEC, module)


def test_swapped_axis_name_fails(module, exported):
    """`tgt` and `src` are both dynamic, so only a run shows the mistake."""
    outputs = (TensorSpec("context", "float32", ("batch", "src", 4)), SPEC.outputs[1])
    with pytest.raises(ExportError, match=r"context has shape .* expected context float32"):
        checks.agreement("attend", exported, GraphSpec("", SPEC.inputs, outputs), module)


def test_beam_axes_differ_in_size(monkeypatch, module, exported):
    """A graph that needs `beam == previous_beam` would pass with equal sizes."""
    seen: list[dict[str, int]] = []
    spec = GraphSpec("", (*SPEC.inputs, TensorSpec("a", "float32", ("beam", "previous_beam"))), SPEC.outputs)

    def record_sizes(spec, sizes, seed=0):
        seen.append(dict(sizes))
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "example_inputs", record_sizes)
    with pytest.raises(KeyboardInterrupt):
        checks.agreement("attend", exported, spec, module)
    assert len({seen[0][axis] for axis in ("beam", "previous_beam", "tgt")}) == 3


class Nested(nn.Module):
    """Returns tensors in nested tuples, None and a mapping, as layers of this package do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = RecurrentLayer("lstm", 4, 3)

    def forward(self, x: Tensor, length: Tensor) -> tuple[object, ...]:
        return (*self.layer(x, length), None, {"twice": 2 * x})


def test_nested_outputs_are_flattened():
    shapes = ("batch", "src", 6), ("batch", 6), ("batch", 6), ("batch", "src", 4)
    names = ("output", "last", "last_cell", "twice")
    spec = GraphSpec(
        "",
        (TensorSpec("x", "float32", ("batch", "src", 4)), TensorSpec("length", "int64", ("batch",), (0, "src"))),
        tuple(TensorSpec(name, "float32", shape) for name, shape in zip(names, shapes, strict=True)),
    )
    module = Nested().eval()
    model = trace(module, spec, [torch.from_numpy(v) for v in example_inputs(spec, {"batch": 2, "src": 7})])
    assert checks.agreement("nested", model, spec, module) < 1e-5
