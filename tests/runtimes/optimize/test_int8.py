"""int8: symmetric scales, zero points of 0, and results within rounding."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

import onnxruntime as ort

from edge_attn.errors import InputError
from edge_attn.runtimes.optimize.int8 import activations, convertible_nodes, to_int8

MODEL = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[n, 4] x, float[n, 4] other) => (float[n, 5] y, float[n, 6] z, float[n, n] free, float[n] vector)
<float[4, 5] w, float16[6, 4] wt, float[6] b = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, float[4] v = {1.0, 1.0, 1.0, 1.0}>
{
  y = MatMul (x, w)
  wide = Cast <to = 1> (wt)
  z = Gemm <transB = 1> (x, wide, b)
  back = Transpose <perm = [1, 0]> (other)
  free = MatMul (x, back)
  vector = MatMul (x, v)
}
"""
RANDOM = np.random.default_rng(1)
X = RANDOM.standard_normal((3, 4)).astype(np.float32)
RANGES = {"x": float(np.abs(X).max())}


@pytest.fixture
def model() -> onnx.ModelProto:
    model = onnx.parser.parse_model(MODEL)
    w = RANDOM.standard_normal((4, 5)).astype(np.float32)
    w[:, 2] = 0.0  # a column without a scale
    wt = RANDOM.standard_normal((6, 4)).astype(np.float16)
    weights = (("w", w), ("wt", wt))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights)
    return model


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X, "other": X})


def test_only_products_with_constant_matrices_are_quantized(model):
    assert convertible_nodes(model) == ["y", "z"]
    assert activations(model) == ["x"]
    converted = to_int8(model, {"y", "z"}, RANGES)
    onnx.checker.check_model(converted, full_check=True)
    ops = [node.op_type for node in converted.graph.node]
    assert ops.count("QuantizeLinear") == 1
    assert ops.count("DequantizeLinear") == 3
    unchanged = to_int8(model, set(), {})
    assert [node.op_type for node in unchanged.graph.node] == [node.op_type for node in model.graph.node]


def test_scales_are_symmetric_and_per_output(model):
    converted = to_int8(model, {"y", "z"}, RANGES)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in converted.graph.initializer}
    zeros = {node.input[2] for node in converted.graph.node if node.op_type.endswith("tizeLinear")}
    assert all(values[name].dtype == np.int8 and not values[name].any() for name in zeros)
    assert values["y.weight.scale"].shape == (5,)
    assert values["z.weight.scale"].shape == (6,)
    assert values["x.scale"] == pytest.approx(RANGES["x"] / 127)
    assert values["y.weight.int8"].min() >= -127
    assert set(np.abs(values["y.weight.int8"]).max(0)) == {127, 0}
    assert "w" not in values
    assert np.isfinite(values["y.weight.scale"]).all()


def test_results_are_within_rounding_of_two_factors(model):
    for actual, expected in zip(run(to_int8(model, {"y", "z"}, RANGES)), run(model), strict=True):
        np.testing.assert_allclose(actual, expected, atol=0.05)


def test_wrong_scale_changes_the_results(model):
    actual, expected = run(to_int8(model, {"y"}, {"x": RANGES["x"] / 100}))[0], run(model)[0]
    assert np.abs(actual - expected).max() > 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_have_no_scale(model, value):
    with pytest.raises(InputError, match=r"x reaches (nan|inf) on the calibration lines"):
        to_int8(model, {"y"}, {"x": float(value)})
    w = onnx.numpy_helper.to_array(model.graph.initializer[-2]).copy()
    w[0, 0] = value
    model.graph.initializer[-2].CopyFrom(onnx.numpy_helper.from_array(w, "w"))
    with pytest.raises(InputError, match=r"the weights of .* contain NaN or infinity"):
        to_int8(model, {"y"}, RANGES)
