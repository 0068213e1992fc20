"""Nodes that stay fp32: the most sensitive first, all that overflow at once, and a limit of rounds."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

from edge_attn.parity.results import LevelResult
from edge_attn.runtimes.optimize.mixed_precision import ROUNDS, Conversion, kl_divergence, plan_precision, rank_nodes
from edge_attn.runtimes.verification.report import Report

NODES = [f"n{i}" for i in range(100)]
"""Nodes of a graph, which a model with named nodes stands in for; a converted one names the converted nodes only."""


def named(names: object) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.graph.node.extend(onnx.NodeProto(name=name) for name in sorted(names))
    return model


def names(model: onnx.ModelProto) -> set[str]:
    return {node.name for node in model.graph.node}


CONVERSION = Conversion(lambda model: NODES, lambda graph, model, converted: named(converted))


def measure(sensitivities: dict[str, float]):
    """Return a function for log-probabilities (1, 2), shifted by the converted nodes."""

    def rows(models) -> np.ndarray:
        shift = sum(sensitivities.get(name, 0.0) for name in names(models["step"]))
        p = 0.5 + shift if np.isfinite(shift) else np.nan
        return np.log(np.array([[p, 1 - p]]))

    return rows


def verdict(bad: set[str], seen: list[set[str]]):
    """Return a check that holds if no node of `bad` is converted; `seen` collects the converted nodes of each round."""

    def check(models) -> Report:
        seen.append(names(models["step"]))
        status = "fails" if bad & seen[-1] else "holds"
        return Report("", "", "", "", "", 0, {}, [LevelResult("L2", status)])

    return check


def run_plan(bad: dict[str, float]):
    seen: list[set[str]] = []
    lines: list[str] = []
    plan = plan_precision({"step": named([])}, CONVERSION, verdict(set(bad), seen), measure(bad), lines.append)
    return plan, seen, lines


def test_graph_that_holds_is_converted_whole():
    plan, seen, lines = run_plan({})
    assert seen == [set(NODES)]
    assert plan.converted == {"step": NODES}
    assert plan.pinned == {"step": []}
    assert not lines


def test_most_sensitive_nodes_are_pinned_first():
    plan, seen, lines = run_plan({"n3": 0.4, "n50": 0.3, "n7": 0.2})
    assert [100 - len(converted) for converted in seen] == [0, 1, 2, 4]
    assert NODES[3] not in seen[1]
    assert set(plan.pinned["step"]) >= {"n3", "n7", "n50"}
    assert plan.report.verdict == "holds"
    assert lines[-1] == "keeping 4 of 100 nodes in fp32"


def test_overflowing_nodes_are_pinned_at_once_and_alone():
    plan, seen, _ = run_plan({f"n{i}": np.inf for i in range(20, 60)})
    assert len(seen) == 2
    assert plan.pinned["step"] == [f"n{i}" for i in range(20, 60)]


def test_rounds_are_limited():
    plan, seen, _ = run_plan(dict.fromkeys(NODES, 0.001))
    assert len(seen) == ROUNDS
    assert plan.report.verdict == "fails"


def test_graph_without_convertible_nodes_is_checked_once():
    seen: list[set[str]] = []
    conversion = Conversion(lambda model: [], lambda graph, model, converted: model)
    plan = plan_precision({"step": named(["bad"])}, conversion, verdict({"bad"}, seen), measure({}), print)
    assert len(seen) == 1
    assert plan.report.verdict == "fails"


def test_ranking_measures_each_node_alone():
    ranking = rank_nodes(
        {"step": named([])}, {"step": NODES}, CONVERSION, measure({"n3": 0.1, "n9": np.inf, "n4": 0.2})
    )
    assert [node for _, _, node in ranking[:3]] == ["n9", "n4", "n3"]
    assert ranking[0][0] == np.inf
    assert ranking[3][0] == 0.0


def test_kl_divergence_of_nan_is_infinite():
    rows = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    assert kl_divergence(rows, rows) == 0.0
    assert kl_divergence(rows, np.log(np.array([[0.4, 0.6], [0.9, 0.1]]))) == pytest.approx(0.0102, rel=0.01)
    assert kl_divergence(rows, np.where(rows < -1, np.nan, rows)) == np.inf
