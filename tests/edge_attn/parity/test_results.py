"""Tests of comparisons and verdicts: NaN and infinity fail unless the reference has the very same ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge_attn.parity.results import LevelResult, Measurement, TensorDifference, TokenMismatch


@pytest.mark.parametrize(
    ("value", "bound", "ok"),
    [(0.0, 0.0, True), (1.0, 1.0, True), (1.1, 1.0, False), (math.nan, 1.0, False), (math.inf, 1.0, False)],
)
def test_measurement_passes_up_to_its_bound(value, bound, ok):
    measurement = Measurement("L1", "max_abs memory.keys", value, bound)
    assert measurement.ok is ok
    assert str(measurement).startswith("ok   L1 max_abs memory.keys" if ok else "FAIL L1 max_abs memory.keys")


def test_level_passes_if_every_measurement_does():
    good, bad = Measurement("L1", "a", 0.0, 1.0), Measurement("L1", "b", 2.0, 1.0)
    assert LevelResult("L1", measurements=[good]).conclude().status == "holds"
    assert LevelResult("L1", measurements=[good, bad]).conclude().status == "fails"
    assert LevelResult("L1").conclude().status == "fails"  # a level without measurements proves nothing
    assert LevelResult("L1").status == "not requested"


@pytest.mark.parametrize(
    ("margin", "noise", "excused"),
    [
        (1e-6, 2e-6, True),
        (2e-6, 2e-6, True),
        (3e-6, 2e-6, False),
        (-3e-6, 2e-6, False),  # the reference contradicts itself: no tie
        (math.inf, 1.0, False),
        (math.nan, 1.0, False),
        (0.0, math.nan, False),
    ],
)
def test_mismatch_is_excused_only_below_the_noise(margin, noise, excused):
    mismatch = TokenMismatch(7, "greedy", 2, 5, 6, margin, noise)
    assert mismatch.within_noise is excused
    text = f"margin {margin:.3g}, noise {noise:.3g}" if math.isfinite(margin) else "no margin to excuse it"
    assert str(mismatch).startswith(f"greedy: sentence 7, step 2: token 6 for 5, {text} (")
    assert str(mismatch).endswith("(excused: a tie below the noise)" if excused else "(NOT excused)")


def test_mismatch_without_a_margin_has_its_reason():
    mismatch = TokenMismatch(7, "beam", 2, 5, 6, math.inf, 0.0, reason="it is not among the reference's 5 translations")
    assert str(mismatch) == (
        "beam: sentence 7, step 2: token 6 for 5, no margin to excuse it: it is not among the reference's 5 "
        "translations (NOT excused)"
    )


def test_difference_accumulates_arrays_by_name():
    difference = TensorDifference()
    difference.add("a", np.array([[1.0, 2.0]]), np.array([[1.0, 2.5]]))
    difference.add("a", np.array([0.0]), np.array([0.0]))
    difference.add("b", np.array([True, False]), np.array([True, False]))
    assert difference.names() == ["a", "b"]
    assert difference.max_abs("a") == 0.5
    assert 0.4 < difference.p99("a") < 0.5
    assert difference.relative("a") == pytest.approx(0.5 / math.sqrt(7.25))
    assert difference.cosine("a") == pytest.approx(1 - 6 / math.sqrt(5 * 7.25))
    assert [getattr(difference, measure)("b") for measure in ("max_abs", "p99", "relative")] == [0.0, 0.0, 0.0]
    assert difference.cosine("b") == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("measure", ["max_abs", "p99", "relative", "cosine"])
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("broken", [np.array([1.0, np.nan]), np.array([np.inf, 1.0])])
def test_nan_and_infinity_exceed_every_bound(measure, broken):
    difference = TensorDifference()
    difference.add("a", np.ones(2), np.ones(2))
    difference.add("a", broken, np.ones(2))
    assert not Measurement("L1", measure, getattr(difference, measure)("a"), 0.5).ok


@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1e6), ("float16", 6e4), ("int64", 0.0), ("bool", 0.0)])
def test_integers_have_no_scale(dtype, scale):
    """One more or less is a fault, also where the integers are large."""
    difference = TensorDifference()
    values = np.full(4, min(scale, 1e6) or 1e6).astype(dtype)
    difference.add("a", values, values.astype("float32"))
    assert difference.scale("a") == pytest.approx(scale, rel=1e-2)


@pytest.mark.parametrize("measure", ["max_abs", "p99", "relative", "cosine"])
def test_nan_and_infinity_of_the_reference_are_no_difference(measure):
    difference = TensorDifference()
    values = np.array([np.nan, np.inf, -np.inf, 2.0])
    difference.add("a", values, values)
    assert Measurement("L1", measure, getattr(difference, measure)("a"), 1e-12).ok
    assert difference.scale("a") == 2.0


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("measure", ["max_abs", "p99", "relative", "cosine"])
@pytest.mark.parametrize(
    "broken", [[1.0, np.inf], [np.nan, np.nan], [np.nan, -np.inf], [np.inf, np.inf], [np.nan, 1e9]], ids=str
)
def test_other_nan_or_infinity_than_the_reference_fails(measure, broken):
    difference = TensorDifference()
    difference.add("a", np.array(broken), np.array([np.nan, np.inf]))
    assert not Measurement("L1", measure, getattr(difference, measure)("a"), 0.5).ok


@pytest.mark.filterwarnings("ignore:invalid value")
def test_difference_of_shapes_is_infinite():
    difference = TensorDifference()
    difference.add("a", np.ones((2, 1)), np.ones(2))
    assert difference.max_abs("a") == math.inf
    assert not difference.p99("a") < math.inf
    assert difference.relative("a") == math.inf
    assert difference.cosine("a") == 1.0


def test_zeros_equal_zeros_only():
    difference = TensorDifference()
    difference.add("same", np.zeros(3), np.zeros(3))
    difference.add("lost", np.zeros(3), np.ones(3))
    difference.add("extra", np.ones(3), np.zeros(3))
    assert [difference.cosine(name) for name in difference.names()] == [0.0, 1.0, 1.0]
    assert [difference.relative(name) for name in difference.names()] == [0.0, 1.0, pytest.approx(math.sqrt(3))]


def test_place_is_the_first_one_outside_of_the_bound():
    difference = TensorDifference()
    for sentence in (0, 2, 1):  # batches may come in any order
        actual = np.zeros((3, 2))
        actual[2, 0], actual[1, 1] = 0.1 * sentence, 0.05 * sentence
        difference.add("a", actual, np.zeros((3, 2)), sentence)
    assert difference.place("a", 0.07, "step") == (1, "step 2")
    assert difference.place("a", 0.04, "step") == (1, "step 1")
    assert difference.place("a", 1.0, "step") == (2, "step 2")  # the largest
    assert difference.place("a", 0.04, "") == (1, "")
    assert difference.place("b", 0.04, "step") == (-1, "")


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("broken", [np.array([[0.0], [np.nan]]), np.array([[0.0], [np.inf]]), np.zeros((1, 1))])
def test_place_names_what_is_not_a_number(broken):
    difference = TensorDifference()
    difference.add("a", np.zeros((2, 1)), np.zeros((2, 1)), 0)
    difference.add("a", broken, np.zeros((2, 1)), 1)
    assert difference.place("a", 1.0, "step") == (1, f"step {len(broken) - 1}")
