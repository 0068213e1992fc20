"""Tests of fold_embedding_matmul: equal results, and only for a table that is small enough."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from edge_attn.export import fold_embeddings
from edge_attn.export.fold_embeddings import fold_embedding_matmul

RANDOM = np.random.default_rng(0)
TABLE, WEIGHTS = RANDOM.standard_normal((7, 3), dtype=np.float32), RANDOM.standard_normal((3, 5), dtype=np.float32)
IDS = np.array([[0, 6], [3, 3]])


def graph(body: str, result: str = "float[batch, n, 5] y", **initializers: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 18]> g (int64[batch, n] ids) => ({result}) {{ {body} }}'
    )
    tensors = {"table": TABLE, "weights": WEIGHTS, **initializers}
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in tensors.items() if k in used)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"ids": IDS}))


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


SINGLE = "row = Gather (table, ids) y = MatMul (row, weights)"
TRANSPOSED = "transposed = Transpose <perm = [1, 0]> (columns) row = Gather (table, ids) y = MatMul (row, transposed)"
SHARED_ROW = "row = Gather (table, ids) y = MatMul (row, weights) z = Identity (row)"
BOTH = "float[batch, n, 5] y, float[batch, n, 3] z"


@pytest.mark.parametrize(
    ("model", "after"),
    [
        (graph(SINGLE), ["MatMul", "Gather"]),
        (graph(TRANSPOSED, columns=WEIGHTS.T.copy()), ["Transpose", "MatMul", "Gather"]),
        (graph(SHARED_ROW, BOTH), ["Gather", "MatMul", "Gather", "Identity"]),
    ],
    ids=["single", "transposed weights", "row with a second use"],
)
def test_product_is_folded(model, after):
    before = run(model)
    assert fold_embedding_matmul(model) == 1
    assert ops(model) == after
    onnx.checker.check_model(model, full_check=True)
    for actual, expected in zip(run(model), before, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert fold_embedding_matmul(model) == 0


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
def test_other_graphs_stay_unchanged(model):
    before = ops(model)
    assert fold_embedding_matmul(model) == 0
    assert ops(model) == before


def test_too_large_table_is_not_folded(monkeypatch):
    monkeypatch.setattr(fold_embeddings, "MAX_TABLE_SIZE", 7 * 5 - 1)
    model = graph(SINGLE)
    assert fold_embedding_matmul(model) == 0
    assert ops(model) == ["Gather", "MatMul"]
