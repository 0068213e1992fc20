"""fp16 by explicit casts: types, islands, stored weights, and results within fp16 rounding."""

from __future__ import annotations

import numpy as np
import pytest
from paths import KINDS_FOLDER

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

import onnxruntime as ort

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import InputError
from edge_attn.runtimes.onnx_graph import load, types
from edge_attn.runtimes.optimize.float16 import ISLANDS, convertible_nodes, to_float16
from edge_attn.runtimes.optimize.inline import inline

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
MODEL = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[n, 4] x, int64[n] ids, bool c) => (float[n, 4] y, float[n, 4] p, int64[2] shape)
<float16[4, 4] stored, float[4] b = {0.1, 0.2, 0.3, 0.4}, int64[1] rows = {1}>
{
  w = Cast <to = 1> (stored)
  product = MatMul (x, w)
  sum = Add (product, b)
  numbers = Cast <to = 1> (ids)
  column = Unsqueeze (numbers, rows)
  more = Mul (sum, column)
  p = Softmax <axis = -1> (more)
  t = Tanh (more)
  shape = Shape (t)
  y = If (c) <then_branch = a () => (float[n, 4] q) { q = Exp (t) }, else_branch = b () => (float[n, 4] r) { r = Neg (p) }>
}
"""  # noqa: E501


@pytest.fixture
def model() -> onnx.ModelProto:
    model = onnx.parser.parse_model(MODEL)
    weights = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "stored"))
    return model


def run(model: onnx.ModelProto, c: bool = True) -> list[np.ndarray]:
    x = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    inputs = {"x": x, "ids": np.array([1, 2, 3]), "c": np.array(c)}
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)


def test_interface_and_islands_stay_fp32(model):
    converted = to_float16(model, set(convertible_nodes(model)))
    onnx.checker.check_model(converted, full_check=True)
    assert [value.type for value in (*converted.graph.input, *converted.graph.output)] == [
        value.type for value in (*model.graph.input, *model.graph.output)
    ]
    kinds = types(converted)
    by_op = {node.op_type: node for node in converted.graph.node if node.op_type != "Cast"}
    for op in ("MatMul", "Add", "Mul", "Tanh", "Unsqueeze"):
        assert kinds[by_op[op].input[0]] == kinds[by_op[op].output[0]] == HALF, op
    assert kinds[by_op["Softmax"].input[0]] == kinds[by_op["Softmax"].output[0]] == FLOAT
    assert {"Softmax", "LogSoftmax", "TopK", "LayerNormalization", "ReduceSum"} <= ISLANDS


def test_stored_fp16_weight_is_used_as_it_is(model):
    converted = to_float16(model, set(convertible_nodes(model)))
    [product] = [node for node in converted.graph.node if node.op_type == "MatMul"]
    assert product.input[1] == "stored"
    assert "w" not in types(converted)
    assert {tensor.name: tensor.data_type for tensor in converted.graph.initializer}["b.half"] == HALF


@pytest.mark.parametrize("c", [True, False])
def test_results_are_within_rounding_of_fp32(model, c):
    for actual, expected in zip(run(to_float16(model, set(convertible_nodes(model))), c), run(model, c), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("c", [True, False])
def test_without_nodes_the_graph_is_unchanged(model, c):
    converted = to_float16(model, set())
    assert [node.op_type for node in converted.graph.node] == [node.op_type for node in model.graph.node]
    for actual, expected in zip(run(converted, c), run(model, c), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_each_node_alone_can_be_converted(model):
    for node in convertible_nodes(model):
        converted = to_float16(model, {node})
        onnx.checker.check_model(converted, full_check=True)
        for actual, expected in zip(run(converted), run(model), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-2)


def test_toy_graphs_are_mostly_fp16(toy_bundle):
    bundle = Bundle.open(toy_bundle)
    for name, spec in bundle.manifest.graphs.items():
        converted = to_float16(model := inline(load(bundle.read(spec.file), name)), set(convertible_nodes(model)))
        onnx.checker.check_model(converted, full_check=True)
        kinds = types(converted)
        products = [node for node in converted.graph.node if node.op_type in ("MatMul", "Gemm", "GRU")]
        assert products
        assert {kinds[node.output[0]] for node in products} == {HALF}
        islands = {kinds[node.output[0]] for node in converted.graph.node if node.op_type in ISLANDS}
        assert HALF not in islands
        assert len(converted.SerializeToString()) < 1.2 * len(model.SerializeToString())


@pytest.mark.rtx
def test_tensorrt_still_refuses_fp16_recurrence_with_lengths(toy_bundle):
    """Once this fails, the recipe of `trt` can convert it."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install edge-attn[trt-rtx]")
    from edge_attn.runtimes.trt.api import load_tensorrt
    from edge_attn.runtimes.trt.build_config import BuildConfig
    from edge_attn.runtimes.trt.builder import build_engine

    spec = Bundle.open(toy_bundle).manifest.graphs["encoder"]
    model = inline(load(Bundle.open(toy_bundle).read(spec.file), "encoder"))
    converted = to_float16(model, set(convertible_nodes(model))).SerializeToString()
    profiles = BuildConfig().buckets.profiles(spec, 20)
    with pytest.raises(InputError, match=r"GRU .* must have .* same types but has Half and Float"):
        build_engine(load_tensorrt(rtx=True), converted, spec, profiles, BuildConfig(), lambda share, what: None)


KINDS = sorted(KINDS_FOLDER.glob("*.zip"))


@pytest.mark.parametrize("path", KINDS, ids=lambda path: path.stem)
def test_node_names_are_unique_whatever_stays_fp32(path):
    """ONNX Runtime refuses duplicates; the Cast after an island must not take the name of an existing Cast."""
    bundle = Bundle.open(path)
    for graph, spec in bundle.manifest.graphs.items():
        inlined = inline(load(bundle.read(spec.file), graph))
        names_of_nodes = convertible_nodes(inlined)
        for left_out in (set(), set(names_of_nodes[::2]), set(names_of_nodes[1::2])):
            names = [node.name for node in to_float16(inlined, set(names_of_nodes) - left_out).graph.node if node.name]
            assert len(names) == len(set(names))
