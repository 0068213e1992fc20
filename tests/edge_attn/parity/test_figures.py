"""Tests of the figures of L1 and L2: their names, their noise, and NaN and infinities that both sides have."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge_attn.parity.figures import Figure, StepFigures, divergence


def summary(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return log-probabilities (steps, 3) as two best and a rest."""
    return {"top_log_probs": rows[:, :2], "rest": rows[:, 2], "projections": rows[:, :1]}


def test_figures_have_the_names_of_their_bounds():
    figures = StepFigures({"memory.keys"})
    keys = np.full((2, 3), 4.0)
    figures.add_encoder({"memory.keys": keys + 0.5}, {"memory.keys": keys}, 7)
    p = np.log(np.array([[0.9, 0.06, 0.04]]))
    state = {"next_state.hidden.0": np.full((1, 8), 3.0), "alignment": np.ones((1, 4))}
    figures.add_steps({**summary(p), **state}, {**summary(p), **state})
    named = {figure.key: figure for figure in figures}
    measures = ("max_abs", "p99", "relative", "cosine")
    others = ["L1.state next_state.hidden.0", "L1.alignment", "L2.log_prob", "L2.rest", "L2.projection", "L2.kl"]
    assert list(named) == [*(f"L1.{measure} memory.keys" for measure in measures), *others]
    assert named["L1.max_abs memory.keys"] == Figure("L1", "max_abs memory.keys", 0.5, 4.0, "encoder")
    assert named["L1.max_abs memory.keys"].bound == "L1.max_abs"
    assert named["L1.max_abs memory.keys"].place(0.1) == (7, "position 0")
    assert named["L1.relative memory.keys"].scale == named["L2.log_prob"].scale == 1.0
    assert named["L1.state next_state.hidden.0"].scale == 3.0


def test_noise_of_second_order_takes_the_factor_squared():
    figures = StepFigures()
    figures.add_encoder({"keys": np.array([1.0, 1e-3])}, {"keys": np.array([1.0, 0.0])})
    values = {figure.key: figure.value for figure in figures}
    noise = figures.noise(4.0)
    assert noise["L1.max_abs keys"] == 4 * values["L1.max_abs keys"]
    assert noise["L1.cosine keys"] == 16 * values["L1.cosine keys"] > 0


def test_noise_that_is_not_finite_excuses_nothing():
    figures = StepFigures()
    figures.add_encoder({"keys": np.array([np.inf, 1.0])}, {"keys": np.ones(2)})
    assert figures.noise(4.0)["L1.max_abs keys"] == 0.0


def test_divergence_ignores_rounding_of_all_logits():
    p = np.log(np.array([[0.9, 0.06, 0.04]]))
    shift = 2e-6  # of every logit, as rounding a large log-sum-exp does
    other = np.log(np.array([[0.89, 0.07, 0.04]]))
    assert abs(divergence(summary(p), summary(p + shift))[0]) < 1e-10
    assert divergence(summary(p), summary(other))[0] == pytest.approx(float((np.exp(p) * (p - other)).sum()))


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_divergence_of_impossible_entries():
    p, q = np.log(np.array([[0.9, 0.0, 0.1]])), np.log(np.array([[0.8, 0.1, 0.1]]))
    assert divergence(summary(p), summary(p))[0] == 0.0
    assert 0 < divergence(summary(p), summary(q))[0] < 0.11
    assert divergence(summary(q), summary(p))[0] == math.inf
