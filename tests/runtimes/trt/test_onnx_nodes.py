"""Reading names from an ONNX file without onnx: the same nodes that onnx sees, and no crash on damaged bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import DATA, EMBEDDED_BUNDLE

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import BundleError
from edge_attn.runtimes.trt.onnx_nodes import Node, read_nodes

NO_ONNX = "onnx is not installed, and torch is not installed: a device needs none"
EMBEDDED = EMBEDDED_BUNDLE


def graph(bundle: Path, name: str) -> bytes:
    opened = Bundle.open(bundle)
    return opened.read(opened.manifest.graphs[name].file)


def test_nodes_have_names_and_their_torch_modules(toy_bundle):
    found = read_nodes(graph(toy_bundle, "encoder"))
    assert found.functions == (("edge_attn", "Gru"),)
    assert found.named("node_embedding") == Node("node_embedding", "Gather", "", "model.encoder.embedding")
    assert str(found.named("node_gru__1")) == "edge_attn::Gru 'node_gru__1' of model.encoder.layers.0"
    assert found.named("nothing") is None


@pytest.mark.parametrize("which", ["toy", "embedded"])
@pytest.mark.parametrize("name", ["encoder", "step"])
def test_it_is_what_onnx_sees(toy_bundle, which, name):
    onnx = pytest.importorskip("onnx", reason=NO_ONNX)
    data = graph({"toy": toy_bundle, "embedded": EMBEDDED}[which], name)
    model = onnx.load_model_from_string(data)

    def all_of(nodes):
        for node in nodes:
            yield node.name, node.op_type, node.domain
            for attribute in node.attribute:
                for inner in (*attribute.graphs, attribute.g):
                    yield from all_of(inner.node)

    expected = [*all_of(model.graph.node), *(n for function in model.functions for n in all_of(function.node))]
    found = read_nodes(data)
    assert sorted((node.name, node.op, node.domain) for node in found.nodes) == sorted(expected)
    assert sorted(found.functions) == sorted((function.domain, function.name) for function in model.functions)


def test_the_graphs_inside_a_node_are_read():
    parser = pytest.importorskip("onnx.parser", reason=NO_ONNX)
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (bool b, float x) => (float y) {
      y = If (b) <then_branch = one () => (float p) { p = Neg(x) }, else_branch = two () => (float q) { q = Abs(x) }>
    }"""
    found = read_nodes(parser.parse_model(text).SerializeToString())
    assert sorted(node.op for node in found.nodes) == ["Abs", "If", "Neg"]


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"PK\x03\x04 not a model", b"\x08\x08"])
def test_what_is_not_onnx_is_refused(data):
    with pytest.raises(BundleError, match="a graph is not ONNX"):
        read_nodes(data)


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 22000), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_is_read_or_refused(at, byte, cut):
    data = bytearray(DAMAGED)
    at %= len(data)
    data[at] = byte
    try:
        read_nodes(bytes(data[:at] if cut else data))
    except BundleError:
        return


DAMAGED = graph(DATA / "toy-bundle.zip", "encoder")
