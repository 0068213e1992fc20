"""Gather(table) then MatMul becomes MatMul(table) then Gather, where that is the same and small enough."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from edge_attn.export import fold_embeddings as lookup

RANDOM = np.random.default_rng(0)
TABLE, WEIGHTS = RANDOM.standard_normal((7, 3), dtype=np.float32), RANDOM.standard_normal((3, 5), dtype=np.float32)
IDS = np.array([[0, 6], [3, 3]])


def graph(body: str, result: str = "float[batch, n, 5] y", **initializers: np.ndarray) -> onnx.ModelProto:
    made = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 18]> g (int64[batch, n] ids) => ({result}) {{ {body} }}'
    )
    given = {"table": TABLE, "weights": WEIGHTS, **initializers}
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in given.items() if k in used)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"ids": IDS}))


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


ONE = "row = Gather (table, ids) y = MatMul (row, weights)"
TURNED = "turned = Transpose <perm = [1, 0]> (back) row = Gather (table, ids) y = MatMul (row, turned)"
KEPT = "row = Gather (table, ids) y = MatMul (row, weights) z = Identity (row)"
BOTH = "float[batch, n, 5] y, float[batch, n, 3] z"


@pytest.mark.parametrize(
    ("model", "after"),
    [
        (graph(ONE), ["MatMul", "Gather"]),
        (graph(TURNED, back=WEIGHTS.T.copy()), ["Transpose", "MatMul", "Gather"]),
        (graph(KEPT, BOTH), ["Gather", "MatMul", "Gather", "Identity"]),
    ],
    ids=["one", "turned", "row used elsewhere too"],
)
def test_the_product_is_looked_up(model, after):
    wanted = run(model)
    assert lookup.look_up_products(model) == 1
    assert ops(model) == after
    onnx.checker.check_model(model, full_check=True)
    for actual, expected in zip(run(model), wanted, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert lookup.look_up_products(model) == 0


@pytest.mark.parametrize(
    "model",
    [
        graph("row = Gather (table, ids) y = Add (row, row)", "float[batch, n, 3] y"),
        graph(
            "row = Gather <axis = 1> (table, few) y = MatMul (row, weights)", "float[7, 5] y", few=np.array([0, 2, 1])
        ),
    ],
    ids=["no product", "another axis"],
)
def test_what_is_something_else_is_left_alone(model):
    before = ops(model)
    assert lookup.look_up_products(model) == 0
    assert ops(model) == before


def test_a_table_too_large_for_a_device_is_not_made(monkeypatch):
    monkeypatch.setattr(lookup, "LARGEST", 7 * 5 - 1)
    model = graph(ONE)
    assert lookup.look_up_products(model) == 0
    assert ops(model) == ["Gather", "MatMul"]
