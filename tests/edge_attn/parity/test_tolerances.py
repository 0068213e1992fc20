"""Tests of the bounds: a manifest may only be stricter, and an override must be a number."""

from __future__ import annotations

import math

import pytest

from edge_attn.errors import BundleError, UsageError
from edge_attn.parity.figures import Figure
from edge_attn.parity.tolerances import BOUNDS, LEVELS, NOISE_LIMIT, bounds
from edge_attn.registry import PRECISIONS


def test_every_precision_has_bounds_of_known_levels():
    assert BOUNDS.keys() == set(PRECISIONS)
    assert {name.partition(".")[0] for limits in BOUNDS.values() for name in limits} == {"L1", "L2", "L3", "L5"}
    assert {"L1", "L2", "L3", "L5"} < LEVELS.keys()


def test_bounds_of_lower_precisions_are_looser():
    assert BOUNDS["fp32"].keys() == BOUNDS["fp16"].keys() == BOUNDS["int8"].keys()
    assert all(BOUNDS["fp32"][name] <= BOUNDS["fp16"][name] <= BOUNDS["int8"][name] for name in BOUNDS["fp32"])
    assert BOUNDS["fp16"]["L2.top1"] == BOUNDS["int8"]["L2.top1"] == 0.01


def test_manifest_may_be_stricter_and_override_looser():
    limits = bounds("fp32", {"L2.log_prob": 1e-6}, {"L1.max_abs": 0.5})
    assert limits == {**BOUNDS["fp32"], "L2.log_prob": 1e-6, "L1.max_abs": 0.5}
    assert bounds("fp32", {"L2.log_prob": 1e-6}, {"L2.log_prob": 2.0})["L2.log_prob"] == 2.0
    assert bounds("fp32", {}, {}) == BOUNDS["fp32"]


@pytest.mark.parametrize("value", [BOUNDS["fp32"]["L2.log_prob"] * 1.001, math.inf, math.nan])
def test_looser_manifest_bound_is_refused(value):
    with pytest.raises(BundleError, match=r"L2.log_prob = .* is looser than the ceiling 0.0001"):
        bounds("fp32", {"L2.log_prob": value}, {})


def test_unknown_bound_is_refused():
    with pytest.raises(BundleError, match=r"'L2.logprob' is not a bound; known: L1.max_abs, "):
        bounds("fp32", {"L2.logprob": 0.0}, {})
    with pytest.raises(UsageError, match=r"--override 'L9.x': not a bound; known: L1.max_abs, "):
        bounds("fp32", {}, {"L9.x": 1.0})


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_negative_or_nonfinite_override_is_refused(value):
    with pytest.raises(UsageError, match=r"--override L2.kl: must be a finite number of at least 0"):
        bounds("fp32", {}, {"L2.kl": value})


@pytest.mark.parametrize(
    ("noise", "scale", "bound"),
    [
        (0.0, 0.3, 1.0),  # the ceiling is a floor for quiet references and small activations
        (0.9, 1.0, 1.0),
        (3.0, 1.0, 3.0),
        (1e9, 1.0, NOISE_LIMIT),  # a reference that is noise alone excuses nothing
        (0.0, 100.0, 100.0),
        (300.0, 100.0, 300.0),
        (1e9, 100.0, 100 * NOISE_LIMIT),
    ],
)
def test_noise_and_scale_raise_the_ceiling(noise, scale, bound):
    ceiling = BOUNDS["fp32"]["L1.max_abs"]
    figure = Figure("L1", "max_abs memory.keys", 0.0, scale)
    measured = bounds("fp32", {}, {}).measurement(figure, {"L1.max_abs memory.keys": noise * ceiling})
    assert measured.bound == pytest.approx(bound * ceiling)
    other = bounds("fp32", {}, {}).measurement(figure, {"L1.max_abs memory.values": 5.0})
    assert other.bound == pytest.approx(max(scale, 1.0) * ceiling)


@pytest.mark.parametrize(("stricter", "overrides"), [({"L1.max_abs": 1e-6}, {}), ({}, {"L1.max_abs": 1e-6})])
def test_bound_of_manifest_or_user_is_taken_as_it_is(stricter, overrides):
    figure = Figure("L1", "max_abs memory.keys", 2e-6, 100.0)
    measured = bounds("fp32", stricter, overrides).measurement(figure, {figure.key: 1e-5})
    assert (measured.bound, measured.ok) == (1e-6, False)
