"""Metrics that compare two sets of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

CHRF_ORDER, CHRF_BETA = 6, 2


def chrf(actual: Sequence[str], expected: Sequence[str]) -> float:
    """Return chrF2 of texts against reference texts (Popović 2015, https://aclanthology.org/W15-3049), from 0 to 1.

    Character n-grams of 1 to 6 without white space; counts are summed over all texts; beta is 2.
    """
    scores = []
    for n in range(1, CHRF_ORDER + 1):
        actual_count, expected_count, shared = 0, 0, 0
        for text, reference in zip(actual, expected, strict=True):
            a, b = _ngrams(text, n), _ngrams(reference, n)
            actual_count, expected_count = actual_count + a.total(), expected_count + b.total()
            shared += (a & b).total()
        if actual_count and expected_count:
            scores.append((shared / actual_count, shared / expected_count))
    precision, recall = (float(np.mean(values)) for values in zip(*scores, strict=True)) if scores else (0.0, 0.0)
    if precision + recall == 0:
        return float(list(actual) == list(expected))
    return (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall)


def _ngrams(text: str, n: int) -> Counter[str]:
    characters = "".join(text.split())
    return Counter(characters[i : i + n] for i in range(len(characters) - n + 1))


def largest(values: np.ndarray) -> float:
    """Return the largest value: NaN if there is one, 0 for an empty array."""
    return float(np.max(values)) if values.size else 0.0


def absolute_difference(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return |actual - expected|: 0 where both are NaN or the same infinity, NaN or infinite where only one is."""
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        return np.where(same, 0.0, np.abs(actual - expected))


def first_difference(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Return the first step at which two token sequences differ, or the shorter length if one begins with the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
