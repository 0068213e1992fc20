"""Sampling: what is drawn from is known by hand, how often is known by probability, and the seed decides the rest."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from table_decoder import SOURCE, A, B, TableDecoder, log_prob, random_tables, table

from edge_attn.decoding.beam_search import search
from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.decoding.options import SearchConfig
from edge_attn.decoding.sampling import Sampler, filter_probabilities
from edge_attn.text.tokenizers import BOS, EOS, PAD

C = 6
COIN = table({BOS: {A: 0.5, B: 0.3, C: 0.15, EOS: 0.05}, A: {EOS: 1.0}, B: {EOS: 1.0}, C: {EOS: 1.0}}, vocabulary=7)


def drawing(**options) -> SearchConfig:
    return SearchConfig(beam=1, sample=True, **options)


def draw(tables: np.ndarray, **options) -> list[Hypothesis]:
    return search(TableDecoder(tables), [SOURCE], drawing(**options))[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [5 / 8, 3 / 8, 0, 0]),
        ({"top_k": 4}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 99}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 0.51}, [5 / 8, 3 / 8, 0, 0]),
        ({"top_p": 0.94}, [10 / 19, 6 / 19, 3 / 19, 0]),
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),  # of the two that are left, the first has 5/8
        ({"temperature": 0.5}, [100 / 146, 36 / 146, 9 / 146, 1 / 146]),
        ({"temperature": 0.5, "top_p": 0.6}, [1, 0, 0, 0]),  # the temperature comes first
        ({"temperature": 100.0, "top_p": 0.6}, [0.336, 0.333, 0.331, 0]),
    ],
)
def test_what_is_drawn_from(options, expected):
    left = filter_probabilities(np.log([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]), drawing(**options))
    left /= left.sum(1, keepdims=True)
    np.testing.assert_allclose(left, [expected, expected[::-1]], atol=1e-3)


def test_equals_stay_together():
    assert np.count_nonzero(filter_probabilities(np.log([[0.3, 0.3, 0.3, 0.1]]), drawing(top_k=1))) == 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {A: 0.5, B: 0.3, C: 0.15, EOS: 0.05}),
        ({"top_k": 2}, {A: 0.625, B: 0.375}),
        ({"top_p": 0.75}, {A: 0.625, B: 0.375}),
        ({"temperature": 0.5}, {A: 100 / 146, B: 36 / 146, C: 9 / 146, EOS: 1 / 146}),
        ({"suppress": (A,)}, {B: 0.6, C: 0.3, EOS: 0.1}),
        ({"min_length": 1}, {A: 50 / 95, B: 30 / 95, C: 15 / 95}),
    ],
)
def test_tokens_come_as_often_as_they_are_likely(options, expected):
    count = 4000
    found = Counter([*h.tokens, EOS][0] for seed in range(4) for h in draw(COIN, n_best=1000, seed=seed, **options))
    assert set(found) <= set(expected)
    for token, probability in expected.items():
        apart = 4 * math.sqrt(probability * (1 - probability) / count)
        assert abs(found[token] / count - probability) <= apart, token


def test_a_repetition_penalty_changes_what_is_drawn_from():
    """.5 ** 2 against .5: the other comes in two of three."""
    tables = table({BOS: {A: 1.0}, A: {A: 0.5, EOS: 0.5}})
    found = [h for seed in range(3) for h in draw(tables, n_best=1000, max_length=2, repetition_penalty=2.0, seed=seed)]
    assert sum(h.finished for h in found) / 3000 == pytest.approx(2 / 3, abs=0.035)


def test_a_sample_is_worth_what_the_model_says_whatever_it_was_drawn_from():
    tables = random_tables(5, 1, 8)
    found = draw(tables, n_best=20, temperature=2.0, top_k=5, max_length=6)
    assert len({h.tokens for h in found}) > 10
    for h in found:
        assert h.log_prob == pytest.approx(log_prob(tables[0], h.tokens, h.finished))
        assert h.score == pytest.approx(h.log_prob / (len(h.tokens) + h.finished))


def test_samples_are_aligned_each_with_its_own_history():
    tables = random_tables(6, 1, 8)
    for h in search(TableDecoder(tables), [SOURCE], drawing(n_best=7, max_length=5), alignments=True)[0]:
        fed = [BOS, *h.tokens][: len(h.tokens) + h.finished]
        history = 0
        for step, (token, weights) in enumerate(zip(fed, h.alignment, strict=True), 1):
            history = history * 8 + token
            assert weights.tolist() == [step, token, history]


def test_the_seed_decides_and_another_seed_decides_otherwise():
    tables = random_tables(8, 1, 9)
    first = draw(tables, n_best=6, seed=1, max_length=12)
    assert draw(tables, n_best=6, seed=1, max_length=12) == first
    assert draw(tables, n_best=6, seed=2, max_length=12) != first


def test_more_samples_begin_with_the_fewer_and_a_longer_limit_changes_no_token():
    tables = random_tables(8, 1, 9)
    few, more = draw(tables, n_best=2, max_length=5), draw(tables, n_best=5, max_length=12)
    assert len({h.tokens for h in more}) == 5
    assert [h.tokens[:5] for h in more[:2]] == [h.tokens for h in few]


def test_sentences_have_streams_of_their_own_wherever_they_stand():
    decoder = TableDecoder(np.repeat(random_tables(9, 1, 9), 3, 0))
    sources = [[0, 5, 3], [1, 6, 7, 3], [2, 5, 5, 5, 3]]
    config = drawing(n_best=3, max_length=10)
    found = search(decoder, sources, config)
    assert len({h.tokens for hypotheses in found for h in hypotheses}) == 9
    assert search(decoder, sources[::-1], config) == found[::-1]


def test_noise_of_another_runtime_does_not_change_what_is_drawn():
    tables = random_tables(10, 1, 50)
    noisy = tables + 1e-6 * np.random.default_rng(0).normal(size=tables.shape)
    options = {"n_best": 50, "max_length": 10, "top_k": 20, "top_p": 0.9}
    same = sum(a.tokens == b.tokens for a, b in zip(draw(tables, **options), draw(noisy, **options), strict=True))
    assert same >= 49


def test_padding_and_the_beginning_are_never_drawn():
    tables = table({BOS: {PAD: 0.5, BOS: 0.4, A: 0.1}, A: {PAD: 0.9, EOS: 0.1}})
    assert {h.tokens for h in draw(tables, n_best=50)} == {(A,)}
    [forced] = search(TableDecoder(tables), [SOURCE], drawing(max_length=2), prefixes=[[BOS, A]])[0]
    assert forced.tokens == (BOS, A)


def test_numbers_are_drawn_as_they_are_needed():
    """A limit that is never reached costs nothing, and the stream is the one that is drawn at once."""
    [found] = draw(table({BOS: {A: 0.5, B: 0.5}, A: {EOS: 1.0}, B: {EOS: 1.0}}), seed=5, max_length=10**12)
    assert found.finished
    sampler = Sampler(drawing(seed=5), [SOURCE])
    numbers = np.random.default_rng([5, 0, *SOURCE]).random(20)
    even = np.log(np.full((1, 1, 1000), 0.001))
    drawn = [int(sampler.draw(even)[0, 0, 0]) for _ in range(20)]
    assert np.abs(drawn - 1000 * numbers).max() <= 1.0


def test_a_prefix_is_not_drawn_and_what_follows_is():
    decoder = TableDecoder(random_tables(11, 1, 9))
    [found] = search(decoder, [SOURCE], drawing(n_best=9, max_length=8), prefixes=[[4, 4, 7]])
    assert {h.tokens[:3] for h in found} == {(4, 4, 7)}
    assert len({h.tokens[3:] for h in found}) > 4


def test_the_last_token_is_drawn_too():
    """The largest number that a stream can draw still lies below the whole mass."""
    sampler = Sampler(drawing(), [SOURCE])
    sampler._streams = [SimpleNamespace(random=iter([1 - 2**-53, 0.0]).__next__)]
    assert sampler.draw(np.log([[[0.25, 0.75, 1e-300]]])).tolist() == [[[1]]]
    assert sampler.draw(np.array([[[-np.inf, -np.inf, 0.0]]])).tolist() == [[[2]]]


def test_a_model_that_says_nothing_is_answered_with_no_number():
    for value in (np.nan, -np.inf):
        [found] = draw(np.full((1, 6, 6), value), max_length=3)
        assert (found.tokens, math.isnan(found.score)) == ((), True)
