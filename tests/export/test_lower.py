"""Tests of edge_attn.export.lower: each torch op becomes one node of our domain, with its function body."""

from __future__ import annotations

import onnx
import pytest
from op_implementations import REGISTERED

from edge_attn.errors import ExportError
from edge_attn.export import lower
from edge_attn.ops import DOMAIN, DOMAIN_VERSION
from edge_attn.registry import OPS


def test_every_op_has_a_translation_and_a_schema():
    assert REGISTERED.keys() == OPS.keys()
    assert lower.translations().keys() == set(REGISTERED.values())
    for name in OPS:
        schema = onnx.defs.get_schema(name, DOMAIN_VERSION, DOMAIN)
        assert [parameter.name for parameter in schema.inputs] == list(lower.op(name).inputs)
        assert [parameter.name for parameter in schema.outputs] == list(lower.op(name).outputs)
        assert schema.attributes.keys() == {*lower.op(name).attributes, *lower.PLUGIN_ATTRIBUTES}


def test_op_names_differ_from_standard_ops():
    """TensorRT looks ops up by their name alone."""
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain != DOMAIN}
    assert not standard & OPS.keys()


def call(name: str, output: str, domain: str = DOMAIN) -> onnx.NodeProto:
    return onnx.helper.make_node(name, ["x"], [output], domain=domain)


def graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return onnx.helper.make_graph(list(nodes), "graph", [], [])


def test_nodes_include_subgraphs():
    innermost = onnx.helper.make_node("Loop", ["x"], ["a"], body=graph(call("Gru", "b")))
    branches = {"then_branch": graph(innermost), "else_branch": graph(call("Lstm", "c"))}
    outer = graph(call("Neg", "d", ""), onnx.helper.make_node("If", ["x"], ["e"], **branches))
    assert sorted(node.op_type for node in lower.nodes(outer)) == ["Gru", "If", "Loop", "Lstm", "Neg"]


def test_called_ops_get_their_function_body():
    inner = onnx.helper.make_node("Loop", ["x"], ["a"], body=graph(call("Gru", "b")))
    model = onnx.helper.make_model(graph(inner, call("DotAttention", "d"), call("DotAttention", "e")))
    lower.attach_functions(model)
    lower.attach_functions(model)  # a second call changes nothing
    assert [(function.domain, function.name) for function in model.functions] == [
        (DOMAIN, "DotAttention"),
        (DOMAIN, "Gru"),
    ]
    assert [entry.version for entry in model.opset_import if entry.domain == DOMAIN] == [DOMAIN_VERSION]


def test_standard_ops_need_no_function():
    model = onnx.helper.make_model(graph(call("Neg", "a", "")))
    lower.attach_functions(model)
    assert not model.functions
    assert DOMAIN not in {entry.domain for entry in model.opset_import}


def test_unknown_op_of_our_domain_fails():
    with pytest.raises(ExportError, match="the graph calls edge_attn::Telepathy, which is not an op"):
        lower.attach_functions(onnx.helper.make_model(graph(call("Telepathy", "a"))))
