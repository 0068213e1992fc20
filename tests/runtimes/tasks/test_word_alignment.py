"""Links between words are those of their tokens with the largest weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attn.config.training import TextConfig
from edge_attn.registry import TOKENIZERS
from edge_attn.runtimes.tasks.alignment import word_numbers, word_pharaoh
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import UNK

LINES = ["the cat sat on the mat", "a dog ran to the cat", "dogs and cats run"] * 4
TEXTS = {kind: Text.train(TextConfig(kind, 60, 60), [(line, line) for line in LINES]) for kind in sorted(TOKENIZERS)}


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        ([" the", " ca", "t"], [0, 1, 1]),
        ([" ", "th", "e", " ", " cat", " "], [0, 0, 0, 1, 1, None]),
        (["a", " ", "b", "", "c"], [0, 1, 1, 1, 1]),
        ([], []),
        ([" ", " "], [None, None]),
    ],
)
def test_tokens_have_the_numbers_of_their_words(texts, numbers):
    assert word_numbers(texts) == numbers


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@given(st.lists(st.sampled_from(["the", "cat", "zebra", "\u2603\u2603", "ca\u2603", "x"]), max_size=6))
def test_words_are_those_of_the_text(kind, words):
    tokenizer = TEXTS[kind].source
    pieces = tokenizer.pieces(tokenizer.encode(" ".join(words)))
    numbers = [number for number in word_numbers(tokenizer.spaced(pieces)) if number is not None]
    assert max(numbers, default=-1) + 1 == len(words)


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@given(st.lists(st.integers(UNK, 25), max_size=8))
def test_words_are_those_of_a_generated_text(kind, ids):
    tokenizer = TEXTS[kind].target
    ids = [i for i in ids if i not in (2, 3) and i < len(tokenizer)]
    numbers = [n for n in word_numbers(tokenizer.spaced(tokenizer.pieces(ids), " \u2047 ")) if n is not None]
    assert max(numbers, default=-1) + 1 == len(tokenizer.decode(ids).split())


def test_weights_of_tokens_are_summed_over_words():
    source, target = [" a", "b", " c"], [" x", "y", " z"]
    weights = np.array(
        [
            [0.3, 0.3, 0.4, 0.0],  # the word `ab` has more than `c`, though `c` has the largest token
            [0.3, 0.3, 0.4, 0.0],
            [0.1, 0.1, 0.5, 0.3],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )
    assert word_pharaoh(weights, source, target) == "0-0 1-1"
    assert word_pharaoh(None, source, target) == word_pharaoh(weights, [], target) == ""
    assert word_pharaoh(weights, source, []) == ""
