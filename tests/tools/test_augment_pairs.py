"""The derived training sentences keep names and numbers, and the pairs of the split stay."""

from __future__ import annotations

import random
import re

import augment_pairs
import everyday
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


def test_number_sentences_are_not_in_the_training_templates():
    templates = {re.sub(r"\{\w+\}|\d+", "#", source) for source, _ in augment_pairs.PHRASES["templates"]}
    sentences = {re.sub(r"\d+", "#", source) for source in everyday.number_sentences()}
    assert len(everyday.number_sentences()) == 200
    assert not sentences & templates


def test_everyday_sentences_are_not_added_to_the_training_data():
    phrases = {source.lower() for source, _ in augment_pairs.PHRASES["phrases"]}
    sources = {source.lower() for source, _ in everyday.everyday_sentences()}
    assert len(everyday.everyday_sentences()) == 60
    assert not sources & phrases


@pytest.mark.parametrize(
    ("translation", "expected"),
    [("J’ai faim.", True), ("j'ai  FAIM.", True), ("J'ai soif.", False), ("", False)],
)
def test_accepted_translations_ignore_case_and_spaces(translation, expected):
    assert everyday.is_accepted(translation, ["j'ai faim."]) is expected


@pytest.mark.parametrize(
    ("translation", "expected"),
    [("Il est 7 h 46.", True), ("Il est 7:46.", True), ("Il est 7 h.", False), ("Il est 7 h 47.", False)],
)
def test_numbers_are_compared(translation, expected):
    assert everyday.keeps_numbers("It is 7:46.", translation) is expected
