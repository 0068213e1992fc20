"""verify catches each fault of a runtime, and excuses a flip only where the margin is below the noise."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from verify_reports import failing, statuses

from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.errors import TooLargeError
from edge_attn.parity.golden import Golden, ReferenceHypothesis
from edge_attn.runtimes.tasks import decoder_levels
from edge_attn.runtimes.verification.verify import check
from edge_attn.spec import GraphSpec, Value


@dataclasses.dataclass
class Faulty:
    """A runtime that hands its outputs to `change` first."""

    inner: object
    change: Callable[[str, dict[str, np.ndarray]], object]
    name: str = "faulty"
    max_batch: int | None = None
    provider: str = "none"
    precision: str = "fp32"

    @property
    def graphs(self) -> Mapping[str, GraphSpec]:
        return self.inner.graphs

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        found = {name: self.inner.numpy(value).copy() for name, value in self.inner.run(graph, inputs).items()}
        self.change(graph, found)
        return found

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
def test_what_is_no_number_is_never_parity(opened, toy, toy_golden, graph, output, value):
    def change(ran: str, outputs: dict[str, np.ndarray]) -> None:
        if ran == graph:
            outputs[output][...] = value

    few = first(toy_golden, 6)
    report = check(opened, Faulty(toy, change), few)
    assert report.exit_code == 1
    content = json.loads(report.json())
    assert content["verdict"] == "fails"
    assert report.junit()


def test_a_level_that_asks_for_more_than_the_engines_hold_is_not_tested_and_the_others_are(opened, toy, toy_golden):
    def narrow(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step" and outputs["log_probs"].shape[1] > 1:
            raise TooLargeError("the engine was built for a beam of up to 1")

    report = check(opened, Faulty(toy, narrow), first(toy_golden, 6))
    found = statuses(report)
    assert {name: found[name] for name in ("L1", "L2", "L3", "L5")} == {
        "L1": "holds",
        "L2": "holds",
        "L3": "not tested",
        "L5": "holds",
    }
    assert (report.verdict, report.exit_code) == ("not tested", 3)
    assert "not tested (the engine was built for a beam of up to 1)" in str(report)


def first(toy_golden: Golden, count: int) -> Golden:
    """The golden data of the first sentences; of those arrays that are read row by row nothing needs to be cut."""
    return dataclasses.replace(
        toy_golden,
        sentences=toy_golden.sentences[:count],
        sources=toy_golden.sources[:count],
        greedy=toy_golden.greedy[:count],
        n_best=toy_golden.n_best[:count],
    )


def test_a_part_of_the_golden_data_holds_too(opened, toy, toy_golden):
    assert check(opened, toy, first(toy_golden, 6)).verdict == "holds"


def test_one_nan_at_one_step_of_one_sentence_is_found(opened, toy, toy_golden):
    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step" and len(outputs["log_probs"]) > 1:
            outputs["log_probs"][1, 0, 5] = np.nan

    report = check(opened, Faulty(toy, change), toy_golden, ["L2"])
    assert statuses(report)["L2"] == "fails"
    assert {"L2.projection", "L2.kl", "L2.top1"} <= failing(report)


def test_a_batch_that_differs_from_the_sentence_alone(opened, toy, toy_golden):
    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step" and len(outputs["candidates"]) > 1:
            for name in ("candidates", "candidate_ids"):
                outputs[name][0] = outputs[name][1]

    level = check(opened, Faulty(toy, change), toy_golden, ["L5"]).levels[5]
    assert level.status == "fails"
    assert {f.name for f in level.measurements if not f.ok} == {"tokens batched", "tokens shuffled"}
    assert {flip.where for flip in level.mismatches} == {"batched", "shuffled"}


def test_a_runtime_that_says_another_thing_the_second_time(opened, toy, toy_golden):
    runs = 0

    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        nonlocal runs
        runs += 1
        if graph == "step":
            outputs["candidates"] -= np.float32(1e-6) * (runs % 5)

    report = check(opened, Faulty(toy, change), toy_golden)
    assert failing(report) == {"L5.rerun"}


def test_alignments_turned_round(opened, toy, toy_golden):
    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step":
            outputs["alignment"] = outputs["alignment"][:, :, ::-1]

    report = check(opened, Faulty(toy, change), toy_golden)
    assert failing(report) == {"L1.alignment", "L3.alignment"}


def test_alignments_of_the_step_before(opened, toy, toy_golden):
    """The attention of a token stands in the row of the next one."""
    held: list[np.ndarray] = []

    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "encoder":
            held.clear()
        else:
            held.append(outputs["alignment"])
            outputs["alignment"] = held[-2] if len(held) > 1 and held[-2].shape == held[-1].shape else held[-1]

    report = check(opened, Faulty(toy, change), toy_golden)
    assert failing(report) == {"L1.alignment", "L3.alignment"}


# ---- flips that a margin excuses


def tie_breaker(least: float) -> Callable[[str, dict[str, np.ndarray]], None]:
    """Takes the second best candidate where it is less than `least` behind."""

    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step":
            best = outputs["candidates"]
            near = best[..., 0] - best[..., 1] < least
            ids = outputs["candidate_ids"][near]
            ids[:, [0, 1]] = ids[:, [1, 0]]
            outputs["candidate_ids"][near] = ids

    return change


@pytest.fixture(scope="session")
def greedy_only(toy_golden) -> Golden:
    """Golden data whose beam search is greedy too, since ties are broken in greedy search's way here."""
    arrays = {name: rows for name, rows in toy_golden.arrays.items() if name != "beam.alignment"}
    config = dataclasses.replace(toy_golden.search, beam=1, n_best=1)
    return dataclasses.replace(
        toy_golden, search=config, n_best=tuple((one,) for one in toy_golden.greedy), arrays=arrays
    )


def with_noise(toy_golden: Golden, noise: np.ndarray) -> Golden:
    return dataclasses.replace(toy_golden, arrays={**toy_golden.arrays, "steps.noise": noise})


def test_a_flip_is_excused_below_the_references_noise_only(opened, toy, greedy_only):
    margins = -np.diff(greedy_only.arrays["steps.top_log_probs"][:, :2], axis=1)[:, 0]
    least = float(np.sort(margins)[0] * 1.001)
    runtime = Faulty(toy, tie_breaker(least))
    row = int(margins.argmin())
    sentence = next(i for i, part in enumerate(greedy_only.steps()) if part.start <= row < part.stop)
    noise = np.zeros(len(margins), np.float32)
    report = check(opened, runtime, with_noise(greedy_only, noise), ["L3"], {"L3.tokens": 0.0})
    flip = report.levels[3].mismatches[0]
    assert (flip.sentence, flip.step, flip.within_noise) == (sentence, row - greedy_only.steps()[sentence].start, False)
    assert flip.margin == pytest.approx(margins[row])
    assert "greedy" in flip.where
    assert report.verdict == "fails"
    noise[row] = margins[row] * 1.01
    report = check(opened, runtime, with_noise(greedy_only, noise), ["L3"])
    flip, *_ = greedy = [flip for flip in report.levels[3].mismatches if flip.where == "greedy"]
    assert len(greedy) == 1
    assert flip.within_noise
    assert f"sentence {sentence}, step {flip.step}: token {flip.candidate} for {flip.reference}" in str(report)
    assert "(excused: a tie below the noise)" in str(report)
    found = {finding.name: finding for finding in report.levels[3].measurements}
    assert found["tokens greedy"].value == 0
    assert 0 < found["excused greedy"].value <= 0.005


def test_too_many_excuses_are_none(opened, toy, greedy_only):
    noise = np.full(len(greedy_only.arrays["steps.noise"]), 100, np.float32)
    report = check(opened, Faulty(toy, tie_breaker(100.0)), with_noise(greedy_only, noise), ["L5"])
    found = {finding.name: finding for finding in report.levels[5].measurements}
    assert found["tokens batched"].ok
    assert found["excused batched"].value > 0.005
    assert not found["excused batched"].ok
    assert report.exit_code == 1


def a_hypothesis(tokens: tuple[int, ...], score: float, noise: float = 0.0) -> ReferenceHypothesis:
    return ReferenceHypothesis(tokens, "", score * (len(tokens) + 1), score, noise * (len(tokens) + 1), True)


def test_a_beam_flip_needs_two_recorded_hypotheses_and_their_margin():
    a, b = a_hypothesis((5, 6), -0.5, 1e-4), a_hypothesis((5, 7, 8), -0.50015, 1e-4)
    found = {one.tokens: Hypothesis(one.tokens, one.log_prob, one.score, True) for one in (a, b)}
    stranger = Hypothesis((9,), -0.9, -0.5, True)
    assert decoder_levels._beam_mismatch((a, b), (found[a.tokens], found[b.tokens]), 3) is None
    flip = decoder_levels._beam_mismatch((a, b), (found[b.tokens], found[a.tokens]), 3)
    assert (flip.sentence, flip.step, flip.reference, flip.candidate) == (3, 1, 6, 7)
    assert flip.margin == pytest.approx(0.00015)
    assert flip.noise == pytest.approx(0.0002)
    assert flip.within_noise
    quiet = dataclasses.replace(b, noise=0.0)
    assert not decoder_levels._beam_mismatch((a, quiet), (found[b.tokens], found[a.tokens]), 3).within_noise
    assert not decoder_levels._beam_mismatch((a, b), (stranger, found[b.tokens]), 3).within_noise
    assert not decoder_levels._beam_mismatch((a, b), (found[a.tokens],), 3).within_noise
    assert not decoder_levels._beam_mismatch((a,), (found[a.tokens], found[b.tokens]), 3).within_noise


def test_divergence_forgives_rounding_and_sees_another_distribution():
    p = np.log(np.array([[0.9, 0.06, 0.04]]))
    shift = 2e-6  # of every logit, as rounding a large log-sum-exp does
    reference = {"top_log_probs": p[:, :2], "rest": p[:, 2]}
    rounded = {"top_log_probs": p[:, :2] + shift, "rest": p[:, 2] + shift}
    other = np.log(np.array([[0.89, 0.07, 0.04]]))
    assert abs(decoder_levels._divergence(reference, rounded)[0]) < 1e-10
    expected = float((np.exp(p) * (p - other)).sum())
    parts = {"top_log_probs": other[:, :2], "rest": other[:, 2]}
    assert decoder_levels._divergence(reference, parts)[0] == pytest.approx(expected)
