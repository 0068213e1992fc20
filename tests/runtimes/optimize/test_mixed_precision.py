"""Choosing what stays fp32: the worst first, what overflows at once, and an end to the tries."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

from edge_attn.parity.results import LevelResult
from edge_attn.runtimes.optimize.mixed_precision import ROUNDS, Lowering, choose, divergence, rank
from edge_attn.runtimes.verification.report import Report

NODES = [f"n{i}" for i in range(100)]
"""A graph is stood for by a model whose nodes are named; a lowered one has the names of the lowered nodes only."""


def named(names: object) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.graph.node.extend(onnx.NodeProto(name=name) for name in sorted(names))
    return made


def names(model: onnx.ModelProto) -> set[str]:
    return {node.name for node in model.graph.node}


LOWERING = Lowering(lambda model: NODES, lambda graph, model, lowered: named(lowered))


def measure(damages: dict[str, float]):
    """Log-probabilities of two entries, moved by what the lowered nodes do."""

    def rows(models) -> np.ndarray:
        apart = sum(damages.get(name, 0.0) for name in names(models["step"]))
        p = 0.5 + apart if np.isfinite(apart) else np.nan
        return np.log(np.array([[p, 1 - p]]))

    return rows


def verdict(bad: set[str], seen: list[set[str]]):
    """Holds once nothing of `bad` is lowered; `seen` gathers what was lowered at each try."""

    def check(models) -> Report:
        seen.append(names(models["step"]))
        status = "fails" if bad & seen[-1] else "holds"
        return Report("", "", "", "", "", 0, {}, [LevelResult("L2", status)])

    return check


def tried(bad: dict[str, float]):
    seen: list[set[str]] = []
    said: list[str] = []
    chosen = choose({"step": named([])}, LOWERING, verdict(set(bad), seen), measure(bad), said.append)
    return chosen, seen, said


def test_what_holds_at_once_is_lowered_whole():
    chosen, seen, said = tried({})
    assert seen == [set(NODES)]
    assert chosen.lowered == {"step": NODES}
    assert chosen.pinned == {"step": []}
    assert not said


def test_the_worst_are_pinned_first_twice_as_many_each_round():
    chosen, seen, said = tried({"n3": 0.4, "n50": 0.3, "n7": 0.2})
    assert [100 - len(lowered) for lowered in seen] == [0, 1, 2, 4]
    assert NODES[3] not in seen[1]
    assert set(chosen.pinned["step"]) >= {"n3", "n7", "n50"}
    assert chosen.report.verdict == "holds"
    assert said[-1] == "keeping 4 of 100 nodes in fp32"


def test_what_overflows_is_pinned_at_once_and_alone():
    chosen, seen, _ = tried({f"n{i}": np.inf for i in range(20, 60)})
    assert len(seen) == 2
    assert chosen.pinned["step"] == [f"n{i}" for i in range(20, 60)]


def test_there_is_an_end_to_the_tries():
    chosen, seen, _ = tried(dict.fromkeys(NODES, 0.001))
    assert len(seen) == ROUNDS
    assert chosen.report.verdict == "fails"


def test_nothing_to_lower_is_tried_once():
    seen: list[set[str]] = []
    lowering = Lowering(lambda model: [], lambda graph, model, lowered: model)
    chosen = choose({"step": named(["bad"])}, lowering, verdict({"bad"}, seen), measure({}), print)
    assert len(seen) == 1
    assert chosen.report.verdict == "fails"


def test_the_ranking_is_of_each_node_alone():
    ranked = rank({"step": named([])}, {"step": NODES}, LOWERING, measure({"n3": 0.1, "n9": np.inf, "n4": 0.2}))
    assert [node for _, _, node in ranked[:3]] == ["n9", "n4", "n3"]
    assert ranked[0][0] == np.inf
    assert ranked[3][0] == 0.0


def test_divergence_is_none_of_the_same_and_infinite_of_what_is_no_number():
    rows = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    assert divergence(rows, rows) == 0.0
    assert divergence(rows, np.log(np.array([[0.4, 0.6], [0.9, 0.1]]))) == pytest.approx(0.0102, rel=0.01)
    assert divergence(rows, np.where(rows < -1, np.nan, rows)) == np.inf
