"""Tests of inline_functions: recurrent nodes without lengths and bodies without functions give the same results."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from edge_attn.export.inline import GATES, inline_functions
from edge_attn.export.lower import op_model

HIDDEN, SIZE, LENGTH, BATCH = 3, 2, 5, 4


def recurrent(kind: str, direction: str, has_state: bool) -> onnx.ModelProto:
    random = np.random.default_rng(2)
    d, gates = 1 + (direction == "bidirectional"), GATES[kind]
    shapes = {"w": (d, gates * HIDDEN, SIZE), "r": (d, gates * HIDDEN, HIDDEN), "b": (d, 2 * gates * HIDDEN)}
    states = (["h", "c"] if kind == "LSTM" else ["h"]) if has_state else []
    shapes.update(dict.fromkeys(states, (d, BATCH, HIDDEN)))
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    outputs = ["Y", "Y_h", "Y_c"][: 3 if kind == "LSTM" else 2]
    settings = {"linear_before_reset": 1} if kind == "GRU" else {}
    if kind == "RNN":
        settings = {"activations": ["Tanh"] * d}  # onnx.reference knows no Relu
    node = onnx.helper.make_node(
        kind, ["x", "w", "r", "b", "lengths", *states], outputs, hidden_size=HIDDEN, direction=direction, **settings
    )
    float_type = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "recurrent",
        [
            onnx.helper.make_tensor_value_info("x", float_type, ["src", BATCH, SIZE]),
            onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, [BATCH]),
        ],
        [onnx.helper.make_tensor_value_info(name, float_type, None) for name in outputs],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)])


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_recurrent_node_without_lengths_is_the_same(kind, direction, has_state):
    model = recurrent(kind, direction, has_state)
    inlined = inline_functions(model)
    assert all(not node.input[4:5] or not node.input[4] for node in inlined.graph.node if node.op_type == kind)
    random = np.random.default_rng(3)
    feed = {
        "x": random.standard_normal((LENGTH, BATCH, SIZE)).astype(np.float32),
        "lengths": np.array([5, 1, 3, 4], np.int32),
    }
    expected = run(model, feed)
    for actual in (run(inlined, feed), ReferenceEvaluator(inlined).run(None, feed)):
        for value, reference in zip(actual, expected, strict=True):
            np.testing.assert_allclose(value, reference, atol=2e-6)


def test_inlined_attention_has_standard_ops_alone():
    shapes = {"query": ("b", "t", 4), "keys": ("b", "s", 4), "values": ("b", "s", 4), "mask": ("b", "s"), "v": (4,)}
    model = op_model("AdditiveAttention", onnx.TensorProto.FLOAT, shapes)
    inlined = inline_functions(model)
    assert not inlined.functions
    assert {entry.domain for entry in inlined.opset_import} == {""}
    assert not {node.op_type for node in inlined.graph.node} & {"CastLike", "Constant", "ReduceMax"}
    random = np.random.default_rng(4)
    feed = {
        name: random.standard_normal([{"b": 2, "t": 3, "s": 5}.get(axis, axis) for axis in shape]).astype(np.float32)
        for name, shape in shapes.items()
    }
    feed["mask"] = np.array([[True, False, True, True, False], [False] * 5])
    for actual in (run(inlined, feed), ReferenceEvaluator(inlined).run(None, feed)):
        for value, reference in zip(actual, run(model, feed), strict=True):
            np.testing.assert_allclose(value, reference, atol=1e-6)
