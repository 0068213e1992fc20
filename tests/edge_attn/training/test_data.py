"""Batches by number of tokens, and samples of all lengths."""

from __future__ import annotations

import numpy as np
import pytest

from edge_attn.config.training import TextConfig
from edge_attn.errors import InputError
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import BOS, EOS, PAD
from edge_attn.training.data import Pairs, choose_samples


@pytest.fixture
def text() -> Text:
    return Text.train(TextConfig("words", 20, 20), [("a b c d e f", "x y z")])


def many(seed: int = 0, count: int = 300) -> Pairs:
    random = np.random.default_rng(seed)
    rows = [[list(random.integers(4, 9, random.integers(1, 20))) for _ in range(count)] for _ in range(2)]
    return Pairs([[*row, EOS] for row in rows[0]], rows[1])


def test_batches_contain_each_pair_once_within_the_limit():
    pairs = many()
    for shuffle in (None, (1, 0), (1, 1)):
        order = pairs.order(64, shuffle)
        assert sorted(np.concatenate(order)) == list(range(300))
        sizes = [max(len(pairs.target[i]) + 1 for i in batch) * len(batch) for batch in order]
        assert max(sizes) <= 64
        assert sum(sizes) / len(sizes) > 50  # batches are almost full


def test_pairs_of_similar_length_are_together():
    pairs = many()
    padded = sum(max(len(pairs.target[i]) for i in batch) * len(batch) for batch in pairs.order(64, (1, 0)))
    assert padded < 1.05 * sum(map(len, pairs.target))


def test_long_pair_is_a_batch_alone():
    order = many().order(1, None)
    assert [len(batch) for batch in order] == [1] * 300


def test_order_depends_on_seed_and_epoch():
    def order(*shuffle):
        return [batch.tolist() for batch in many().order(64, shuffle)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_batch_is_padded_and_shifted():
    batch = Pairs([[7, 5, EOS], [6, EOS]], [[4], [8, 9, 4]]).batch(np.array([0, 1]))
    assert batch.source.tolist() == [[7, 5, EOS], [6, EOS, PAD]]
    assert batch.source_length.tolist() == [3, 2]
    assert batch.target.tolist() == [[BOS, 4, PAD, PAD], [BOS, 8, 9, 4]]
    assert batch.expected.tolist() == [[4, EOS, PAD, PAD], [8, 9, 4, EOS]]
    assert batch.tokens == 6


def test_long_pairs_are_omitted(text):
    pairs = Pairs.encode(text, [("a b", "x y"), ("a b c", "x"), ("a", "x y z"), ("a", "x")], 3)
    assert [len(s) for s in pairs.source] == [3, 2]
    assert [len(t) for t in pairs.target] == [2, 1]
    with pytest.raises(InputError, match=r"no pair has at most data.max_tokens = 1"):
        Pairs.encode(text, [("a b", "x y")], 1)


SOURCES = [" ".join("abcdef"[(i + j) % 6] for j in range(1 + i % 37)) for i in range(2000)]


def test_samples_are_distinct_and_of_every_length(text):
    samples = choose_samples(text, SOURCES)
    assert len(samples) == len(set(samples)) == 96
    lengths = [len(text.encode_source(sample)) for sample in samples]
    assert lengths == sorted(lengths)
    assert set(lengths) == {len(text.encode_source(source)) for source in SOURCES}
    counts = np.bincount(lengths)[2:]
    assert counts.max() - counts.min() <= 2  # SOURCES has as many of each length


def test_samples_depend_on_the_set_of_sources(text):
    assert choose_samples(text, SOURCES) == choose_samples(text, [*reversed(SOURCES), *SOURCES])


def test_few_sources_are_all_samples_except_empty_ones(text):
    assert choose_samples(text, ["b a", "", "a", "  ", "b a", "a\nb"]) == ["a", "b a"]
    assert choose_samples(text, []) == []
    assert choose_samples(text, SOURCES, 1) == [min(set(SOURCES), key=lambda s: (len(s), s))]


def test_source_without_token_is_no_sample():
    pieces = Text.train(TextConfig("sentencepiece", 60, 60), [("some words here", "x y")] * 5)
    blank = "\u200b"  # a zero-width space, which SentencePiece normalizes away
    assert len(pieces.encode_source(blank)) == 1
    assert choose_samples(pieces, [blank, "words"]) == ["words"]
