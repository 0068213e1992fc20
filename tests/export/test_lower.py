"""Each torch op becomes one node of our domain by the call rules, and each node finds its body."""

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
        assert schema.attributes.keys() == {*lower.op(name).attributes, *lower.CALL}


def test_no_op_has_the_name_of_a_standard_one():
    """TensorRT looks ops up by their name alone."""
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain != DOMAIN}
    assert not standard & OPS.keys()


def call(name: str, output: str, domain: str = DOMAIN) -> onnx.NodeProto:
    return onnx.helper.make_node(name, ["x"], [output], domain=domain)


def graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return onnx.helper.make_graph(list(nodes), "graph", [], [])


def test_nodes_inside_of_nodes_are_found():
    innermost = onnx.helper.make_node("Loop", ["x"], ["a"], body=graph(call("Gru", "b")))
    branches = {"then_branch": graph(innermost), "else_branch": graph(call("Lstm", "c"))}
    outer = graph(call("Neg", "d", ""), onnx.helper.make_node("If", ["x"], ["e"], **branches))
    assert sorted(node.op_type for node in lower.nodes(outer)) == ["Gru", "If", "Loop", "Lstm", "Neg"]


def test_what_is_called_finds_its_body():
    inner = onnx.helper.make_node("Loop", ["x"], ["a"], body=graph(call("Gru", "b")))
    model = onnx.helper.make_model(graph(inner, call("DotAttention", "d"), call("DotAttention", "e")))
    lower.attach_functions(model)
    lower.attach_functions(model)  # once more changes nothing
    assert [(function.domain, function.name) for function in model.functions] == [
        (DOMAIN, "DotAttention"),
        (DOMAIN, "Gru"),
    ]
    assert [entry.version for entry in model.opset_import if entry.domain == DOMAIN] == [DOMAIN_VERSION]


def test_a_graph_of_standard_ops_needs_nothing():
    model = onnx.helper.make_model(graph(call("Neg", "a", "")))
    lower.attach_functions(model)
    assert not model.functions
    assert DOMAIN not in {entry.domain for entry in model.opset_import}


def test_an_unknown_op_of_our_domain():
    with pytest.raises(ExportError, match="the graph calls edge_attn::Telepathy, which is not an op"):
        lower.attach_functions(onnx.helper.make_model(graph(call("Telepathy", "a"))))
