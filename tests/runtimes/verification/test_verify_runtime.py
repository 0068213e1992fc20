"""Tests of verify on faulty runtimes: each fault fails, and mismatches below the noise are excused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from verify_reports import failing, statuses

from edge_attn.errors import TooLargeError
from edge_attn.parity.golden import Golden
from edge_attn.runtimes.verification.junit import junit
from edge_attn.runtimes.verification.verify import check
from edge_attn.spec import GraphSpec, Value


@dataclasses.dataclass
class Faulty:
    """A runtime whose outputs `change` modifies."""

    inner: object
    change: Callable[[str, dict[str, np.ndarray]], object]
    name: str = "faulty"
    max_batch: int | None = None
    max_beam: int | None = None
    provider: str = "none"
    precision: str = "fp32"

    @property
    def graphs(self) -> Mapping[str, GraphSpec]:
        return self.inner.graphs

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        outputs = {name: self.inner.numpy(value).copy() for name, value in self.inner.run(graph, inputs).items()}
        self.change(graph, outputs)
        return outputs

    def numpy(self, value: Value) -> np.ndarray:
        return value

    def select_rows(self, value: Value, index: np.ndarray) -> Value | None:
        return None


OUTPUTS = (
    ("encoder", "memory.keys"),
    ("encoder", "memory.values"),
    ("encoder", "state.hidden.0"),
    ("step", "candidates"),
    ("step", "log_probs"),
    ("step", "alignment"),
    ("step", "next_state.hidden.0"),
)


@pytest.mark.parametrize(("graph", "output"), OUTPUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_fail_verification(opened, toy, toy_golden, graph, output, value):
    def change(name: str, outputs: dict[str, np.ndarray]) -> None:
        if name == graph:
            outputs[output][...] = value

    report = check(opened, Faulty(toy, change), first(toy_golden, 6))
    assert report.exit_code == 1
    content = json.loads(report.json())
    assert content["verdict"] == "fails"
    assert junit(report)


def test_level_beyond_the_engine_is_not_tested(opened, toy, toy_golden):
    def narrow(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step" and outputs["log_probs"].shape[1] > 1:
            raise TooLargeError("the engine was built for a beam of up to 1")

    report = check(opened, Faulty(toy, narrow), first(toy_golden, 6))
    levels = statuses(report)
    assert {name: levels[name] for name in ("L1", "L2", "L3", "L5")} == {
        "L1": "holds",
        "L2": "holds",
        "L3": "not tested",
        "L5": "holds",
    }
    assert (report.verdict, report.exit_code) == ("not tested", 3)
    assert "not tested (the engine was built for a beam of up to 1)" in str(report)


def first(toy_golden: Golden, count: int) -> Golden:
    """Return the golden data of the first sentences. Its arrays are read by row, so they stay as they are."""
    return dataclasses.replace(
        toy_golden,
        sentences=toy_golden.sentences[:count],
        sources=toy_golden.sources[:count],
        greedy=toy_golden.greedy[:count],
        n_best=toy_golden.n_best[:count],
    )


def test_part_of_the_golden_data_holds(opened, toy, toy_golden):
    assert check(opened, toy, first(toy_golden, 6)).verdict == "holds"


def test_single_nan_fails_verification(opened, toy, toy_golden):
    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step" and len(outputs["log_probs"]) > 1:
            outputs["log_probs"][1, 0, 5] = np.nan

    report = check(opened, Faulty(toy, change), toy_golden, ["L2"])
    assert statuses(report)["L2"] == "fails"
    assert {"L2.projection", "L2.kl", "L2.top1"} <= failing(report)


def test_batch_that_differs_from_single_sentences_fails(opened, toy, toy_golden):
    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step" and len(outputs["candidates"]) > 1:
            for name in ("candidates", "candidate_ids"):
                outputs[name][0] = outputs[name][1]

    level = check(opened, Faulty(toy, change), toy_golden, ["L5"]).level("L5")
    assert level.status == "fails"
    assert {item.name for item in level.measurements if not item.ok} == {"tokens batched", "tokens shuffled"}
    assert {mismatch.where for mismatch in level.mismatches} == {"batched", "shuffled"}


def test_runtime_with_varying_results_fails_rerun(opened, toy, toy_golden):
    runs = 0

    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        nonlocal runs
        runs += 1
        if graph == "step":
            outputs["candidates"] -= np.float32(1e-6) * (runs % 5)

    report = check(opened, Faulty(toy, change), toy_golden)
    assert failing(report) == {"L5.rerun"}


def test_reversed_alignments_fail(opened, toy, toy_golden):
    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step":
            outputs["alignment"] = outputs["alignment"][:, :, ::-1]

    report = check(opened, Faulty(toy, change), toy_golden)
    assert failing(report) == {"L1.alignment", "L3.alignment"}


def test_alignments_of_the_previous_step_fail(opened, toy, toy_golden):
    """The attention of a token is in the row of the next token."""
    previous: list[np.ndarray] = []

    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "encoder":
            previous.clear()
        else:
            previous.append(outputs["alignment"])
            same_shape = len(previous) > 1 and previous[-2].shape == previous[-1].shape
            outputs["alignment"] = previous[-2] if same_shape else previous[-1]

    report = check(opened, Faulty(toy, change), toy_golden)
    assert failing(report) == {"L1.alignment", "L3.alignment"}


# ---- mismatches that a margin excuses


def tie_breaker(limit: float) -> Callable[[str, dict[str, np.ndarray]], None]:
    """Return a change that takes the second best candidate if it is less than `limit` behind."""

    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step":
            best = outputs["candidates"]
            near = best[..., 0] - best[..., 1] < limit
            ids = outputs["candidate_ids"][near]
            ids[:, [0, 1]] = ids[:, [1, 0]]
            outputs["candidate_ids"][near] = ids

    return change


@pytest.fixture(scope="session")
def greedy_only(toy_golden) -> Golden:
    """Return golden data whose beam search is greedy too, since the tie breaker works as in greedy search."""
    arrays = {name: rows for name, rows in toy_golden.arrays.items() if name != "beam.alignment"}
    config = dataclasses.replace(toy_golden.search, beam=1, n_best=1)
    return dataclasses.replace(
        toy_golden, search=config, n_best=tuple((greedy,) for greedy in toy_golden.greedy), arrays=arrays
    )


def with_noise(toy_golden: Golden, noise: np.ndarray) -> Golden:
    return dataclasses.replace(toy_golden, arrays={**toy_golden.arrays, "steps.noise": noise})


def test_mismatch_is_excused_only_below_the_noise(opened, toy, greedy_only):
    margins = -np.diff(greedy_only.arrays["steps.top_log_probs"][:, :2], axis=1)[:, 0]
    limit = float(np.sort(margins)[0] * 1.001)
    runtime = Faulty(toy, tie_breaker(limit))
    row = int(margins.argmin())
    sentence = next(i for i, part in enumerate(greedy_only.steps()) if part.start <= row < part.stop)
    noise = np.zeros(len(margins), np.float32)
    report = check(opened, runtime, with_noise(greedy_only, noise), ["L3"], {"L3.tokens": 0.0})
    mismatch = report.level("L3").mismatches[0]
    assert (mismatch.sentence, mismatch.step, mismatch.within_noise) == (
        sentence,
        row - greedy_only.steps()[sentence].start,
        False,
    )
    assert mismatch.margin == pytest.approx(margins[row])
    assert "greedy" in mismatch.where
    assert report.verdict == "fails"
    noise[row] = margins[row] * 1.01
    report = check(opened, runtime, with_noise(greedy_only, noise), ["L3"])
    mismatch, *_ = greedy = [mismatch for mismatch in report.level("L3").mismatches if mismatch.where == "greedy"]
    assert len(greedy) == 1
    assert mismatch.within_noise
    assert f"sentence {sentence}, step {mismatch.step}: token {mismatch.candidate} for {mismatch.reference}" in str(
        report
    )
    assert "(excused: a tie below the noise)" in str(report)
    measurements = {item.name: item for item in report.level("L3").measurements}
    assert measurements["tokens greedy"].value == 0
    assert 0 < measurements["excused greedy"].value <= 0.005


def test_too_many_excused_mismatches_fail(opened, toy, greedy_only):
    noise = np.full(len(greedy_only.arrays["steps.noise"]), 100, np.float32)
    report = check(opened, Faulty(toy, tie_breaker(100.0)), with_noise(greedy_only, noise), ["L5"])
    measurements = {item.name: item for item in report.level("L5").measurements}
    assert measurements["tokens batched"].ok
    assert measurements["excused batched"].value > 0.005
    assert not measurements["excused batched"].ok
    assert report.exit_code == 1
