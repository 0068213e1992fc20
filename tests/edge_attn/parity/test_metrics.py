"""Tests of the metrics: the largest value, the first difference of two sequences, and chrF."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge_attn.parity.metrics import chrf, first_difference, largest


def test_largest_of_empty_is_zero_and_of_nan_is_nan():
    assert largest(np.array([])) == 0.0
    assert math.isnan(largest(np.array([1.0, np.nan, 3.0])))


def test_first_difference_is_an_index():
    assert first_difference((1, 2, 3), (1, 2, 4)) == 2
    assert first_difference((1, 2), (1, 2, 4)) == 2
    assert first_difference((1, 2, 4), ()) == 0
    assert first_difference((1,), (1,)) == 1


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        (["le roi rouge", "un chat"], ["le roi rouge", "un chien"]),
        (["a b c d e f g"], ["g f e d c b a"]),
        (["Où as-tu appris le français ?", "x"], ["Où avez-vous appris à parler français ?", "y"]),
        (["l'été", ""], ["l'été", "long and not there at all"]),
    ],
)
def test_chrf_equals_sacrebleu(candidates, expected):
    sacrebleu = pytest.importorskip("sacrebleu", reason="torch is not installed, nor is sacrebleu")
    assert chrf(candidates, expected) == pytest.approx(
        sacrebleu.corpus_chrf(candidates, [expected]).score / 100, abs=1e-4
    )


def test_chrf_of_equal_texts_is_one_and_of_disjoint_texts_zero():
    assert chrf(["a b", ""], ["a b", ""]) == chrf([""], [""]) == 1.0
    assert chrf(["abc"], ["xyz"]) == chrf([""], ["xyz"]) == 0.0
