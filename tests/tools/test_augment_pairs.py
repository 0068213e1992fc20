"""The derived training sentences keep names and numbers, and the pairs of the split stay."""

from __future__ import annotations

import random
import re

import augment_pairs
import pytest

PAIRS = [
    ("Tom is 25 years old.", "Tom a 25 ans."),  # codespell:ignore ans
    ("I think that Tom is in Boston.", "Je pense que Tom est à Boston."),
    ("Close it.", "Fermez-le."),
] * 40


def test_every_pair_stays_and_the_result_is_reproducible():
    result = augment_pairs.augment(PAIRS)
    assert result == augment_pairs.augment(PAIRS)
    assert all(result.count(pair) >= 40 for pair in set(PAIRS))
    assert any(source == "close it" for source, _ in result)
    assert any(source.isupper() for source, _ in result)


def test_templates_keep_numbers():
    for source, target in augment_pairs.filled_templates(2000, random.Random(1)):
        assert sorted(re.findall(r"\d+", source)) == sorted(re.findall(r"\d+", target)), (source, target)
        assert "{" not in source + target


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("Je pense que Tom dort.", "Anna", "Je pense qu'Anna dort."),
        ("Le chien de Tom.", "Daniel", "Le chien de Daniel."),
        ("Le chien de Tom.", "Éric", "Le chien d'Éric."),
        ("Tomates de Tom", "Zoe", "Tomates de Zoe"),
    ],
)
def test_name_is_replaced_with_elision(text, name, expected):
    assert augment_pairs.replace_name(text, "Tom", name) == expected
