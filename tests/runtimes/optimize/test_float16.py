"""fp16 by explicit casts: types, islands, stored weights; and the same numbers as near as fp16 comes."""

from __future__ import annotations

import numpy as np
import pytest
from paths import KINDS_FOLDER

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

import onnxruntime as ort

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import InputError
from edge_attn.runtimes.onnx_graph import load, types
from edge_attn.runtimes.optimize.float16 import ISLANDS, half, lowerable
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
    made = onnx.parser.parse_model(MODEL)
    weights = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float16)
    made.graph.initializer.append(onnx.numpy_helper.from_array(weights, "stored"))
    return made


def run(model: onnx.ModelProto, c: bool = True) -> list[np.ndarray]:
    x = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    inputs = {"x": x, "ids": np.array([1, 2, 3]), "c": np.array(c)}
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)


def test_inputs_and_outputs_keep_their_types_and_islands_stay_fp32(model):
    made = half(model, set(lowerable(model)))
    onnx.checker.check_model(made, full_check=True)
    assert [value.type for value in (*made.graph.input, *made.graph.output)] == [
        value.type for value in (*model.graph.input, *model.graph.output)
    ]
    kinds = types(made)
    by_op = {node.op_type: node for node in made.graph.node if node.op_type != "Cast"}
    for op in ("MatMul", "Add", "Mul", "Tanh", "Unsqueeze"):
        assert kinds[by_op[op].input[0]] == kinds[by_op[op].output[0]] == HALF, op
    assert kinds[by_op["Softmax"].input[0]] == kinds[by_op["Softmax"].output[0]] == FLOAT
    assert {"Softmax", "LogSoftmax", "TopK", "LayerNormalization", "ReduceSum"} <= ISLANDS


def test_a_stored_weight_is_used_as_it_stands(model):
    made = half(model, set(lowerable(model)))
    [product] = [node for node in made.graph.node if node.op_type == "MatMul"]
    assert product.input[1] == "stored"
    assert "w" not in types(made)
    assert {tensor.name: tensor.data_type for tensor in made.graph.initializer}["b.half"] == HALF


@pytest.mark.parametrize("c", [True, False])
def test_the_numbers_are_those_of_fp32_but_for_rounding(model, c):
    for found, expected in zip(run(half(model, set(lowerable(model))), c), run(model, c), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("c", [True, False])
def test_nothing_lowered_is_the_graph_itself(model, c):
    made = half(model, set())
    assert [node.op_type for node in made.graph.node] == [node.op_type for node in model.graph.node]
    for found, expected in zip(run(made, c), run(model, c), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_each_node_alone_may_be_lowered(model):
    for node in lowerable(model):
        made = half(model, {node})
        onnx.checker.check_model(made, full_check=True)
        for found, expected in zip(run(made), run(model), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


def test_every_graph_of_the_toy_is_mostly_fp16(toy_bundle):
    bundle = Bundle.open(toy_bundle)
    for name, spec in bundle.manifest.graphs.items():
        made = half(model := inline(load(bundle.read(spec.file), name)), set(lowerable(model)))
        onnx.checker.check_model(made, full_check=True)
        kinds = types(made)
        products = [node for node in made.graph.node if node.op_type in ("MatMul", "Gemm", "GRU")]
        assert products
        assert {kinds[node.output[0]] for node in products} == {HALF}
        islands = {kinds[node.output[0]] for node in made.graph.node if node.op_type in ISLANDS}
        assert HALF not in islands
        assert len(made.SerializeToString()) < 1.2 * len(model.SerializeToString())


@pytest.mark.rtx
def test_tensorrt_still_refuses_a_recurrence_with_lengths_in_fp16(toy_bundle):
    """Once it does not, the recipe of `trt` may lower it."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install edge-attn[trt-rtx]")
    from edge_attn.runtimes.trt.api import load_tensorrt
    from edge_attn.runtimes.trt.builder import BuildConfig, build_engine

    spec = Bundle.open(toy_bundle).manifest.graphs["encoder"]
    model = inline(load(Bundle.open(toy_bundle).read(spec.file), "encoder"))
    made = half(model, set(lowerable(model))).SerializeToString()
    profiles = BuildConfig().buckets.profiles(spec, 20)
    with pytest.raises(InputError, match=r"GRU .* must have .* same types but has Half and Float"):
        build_engine(load_tensorrt(rtx=True), made, spec, profiles, BuildConfig(), lambda share, what: None)


KINDS = sorted(KINDS_FOLDER.glob("*.zip"))


@pytest.mark.parametrize("path", KINDS, ids=lambda path: path.stem)
def test_whatever_stays_fp32_every_node_has_a_name_of_its_own(path):
    """ONNX Runtime refuses two of one name; an island's cast back must not take that of a cast that was there."""
    bundle = Bundle.open(path)
    for graph, spec in bundle.manifest.graphs.items():
        inlined = inline(load(bundle.read(spec.file), graph))
        may = lowerable(inlined)
        for left_out in (set(), set(may[::2]), set(may[1::2])):
            names = [node.name for node in half(inlined, set(may) - left_out).graph.node if node.name]
            assert len(names) == len(set(names))
