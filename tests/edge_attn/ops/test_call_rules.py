"""The call rules of edge_attn/ops/__init__.py, with which one ONNX file runs in every runtime."""

from __future__ import annotations

import onnx
import pytest
from op_cases import CASES, expected
from op_implementations import inlined_model, model

from edge_attn.export import lower
from edge_attn.ops import DOMAIN, OPSET
from edge_attn.registry import OPS


def test_ops_are_registered_by_their_names() -> None:
    assert {name: lower.op(name).name for name in OPS} == {name: name for name in OPS}


def test_op_names_are_unique_over_all_domains() -> None:
    """No domain of onnx or ONNX Runtime has such a name, because TensorRT looks names up without their domain."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    lower.register_schemas()
    other_names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain != DOMAIN}
    other_names |= {schema.name for schema in get_all_operator_schema() if schema.domain != DOMAIN}
    assert {"LSTM", "Attention", "FusedMatMul"} <= other_names
    assert not other_names & set(OPS)


@pytest.mark.parametrize("name", OPS)
def test_body_uses_only_standard_ops_of_opset_18(name: str) -> None:
    function = onnx.parser.parse_function(lower.op(name).function_text())
    assert [(entry.domain, entry.version) for entry in function.opset_import] == [("", OPSET)]
    assert function.domain == DOMAIN
    for node in lower.nodes(function):
        schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)  # raises where there is none
        assert not schema.deprecated
        assert {attribute.name for attribute in node.attribute} <= set(schema.attributes)


@pytest.mark.parametrize("name", OPS)
def test_body_matches_the_declaration(name: str) -> None:
    op = lower.op(name)
    function = onnx.parser.parse_function(op.function_text())
    assert tuple(function.input) == tuple(op.inputs)
    assert tuple(function.output) == op.outputs
    assert set(function.attribute) == set(op.attributes)
    nodes = list(lower.nodes(function))
    graphs = [attribute.g for node in nodes for attribute in node.attribute if attribute.HasField("g")]
    defined = [output for node in nodes for output in node.output]
    defined += [value.name for graph in graphs for value in graph.input]
    used = {value for node in nodes for value in node.input} | set(op.outputs)
    used |= {value.name for graph in graphs for value in graph.output}
    # A Scan must return all its states, so some of its outputs are unused.
    scan_outputs = {output for node in nodes if node.op_type == "Scan" for output in node.output}
    assert len(defined) == len(set(defined))
    assert set(defined) | set(op.inputs) == used | scan_outputs


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_call_follows_the_call_rules(name: str, dtype: str) -> None:
    called, op = model(name, dtype), lower.op(CASES[name].op)
    (node,) = called.graph.node
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert attributes.pop("plugin_namespace") == b"edge_attn"
    assert attributes.pop("plugin_version") == b"1"
    assert set(attributes) == set(op.attributes)
    assert tuple(node.input) == tuple(op.inputs)
    assert tuple(node.output) == op.outputs


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_onnx_infers_types_and_accepts_the_body(name: str, dtype: str) -> None:
    lower.register_schemas()
    inferred = onnx.shape_inference.infer_shapes(inlined_model(name, dtype), check_type=True, strict_mode=True)
    onnx.checker.check_model(inferred, full_check=True)
    types = [output.type.tensor_type for output in inferred.graph.output]
    kind = {"float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE}[dtype]
    assert [t.elem_type for t in types] == [kind] * len(types)
    assert [len(t.shape.dim) for t in types] == [o.ndim for o in expected(name, dtype, "all", 1, 1)]

    called = onnx.ModelProto()
    called.CopyFrom(model(name, dtype))
    for output, described in zip(called.graph.output, inferred.graph.output, strict=True):
        output.type.CopyFrom(described.type)  # the checker requires a shape on each output of a graph
    onnx.checker.check_model(called, full_check=True)
