"""A graph is read only if its stored tensors are whole, wherever they stand in it."""

from __future__ import annotations

import numpy as np
import pytest

from edge_attn.errors import BundleError

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

from edge_attn.runtimes import onnx_graph


def model(place: str, tensor: onnx.TensorProto) -> bytes:
    """Return a graph that contains a tensor as an initializer, a constant, or a constant of a function."""
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    nodes = [onnx.helper.make_node("Identity", ["c"], ["y"])]
    functions, initializers = [], []
    if place == "initializer":
        tensor.name = "c"
        initializers = [tensor]
    elif place == "constant":
        nodes = [constant, *nodes]
    else:
        opsets = [onnx.helper.make_opsetid("", 18)]
        functions = [onnx.helper.make_function("edge_attn", "C", [], ["c"], [constant], opsets)]
        nodes = [onnx.helper.make_node("C", [], ["c"], domain="edge_attn"), *nodes]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    graph = onnx.helper.make_graph(nodes, "g", [], [output], initializers)
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("edge_attn", 1)]
    whole = onnx.helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
    data: bytes = whole.SerializeToString()
    return data


@pytest.mark.parametrize("place", ["initializer", "constant", "function"])
def test_tensor_of_another_size_is_refused(place):
    tensor = onnx.numpy_helper.from_array(np.ones(2, np.float32))
    assert onnx_graph.load(model(place, tensor), "x").graph.output
    tensor.raw_data = tensor.raw_data + b"\0" * 4
    with pytest.raises(BundleError, match="x is not an ONNX graph"):
        onnx_graph.load(model(place, tensor), "x")


@pytest.mark.parametrize("place", ["initializer", "constant", "function"])
def test_tensor_in_another_file_is_not_read(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(b"\0" * 8)
    tensor = onnx.numpy_helper.from_array(np.ones(2, np.float32))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights"
    with pytest.raises(BundleError, match="x is not an ONNX graph"):
        onnx_graph.load(model(place, tensor), "x")
