"""Sampling: filtered probabilities, frequencies of the tokens, and the seed."""

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


def sampling(**options) -> SearchConfig:
    return SearchConfig(beam=1, sample=True, **options)


def sample(tables: np.ndarray, **options) -> list[Hypothesis]:
    return search(TableDecoder(tables), [SOURCE], sampling(**options))[0]


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
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),  # after top-k, the first has 5/8
        ({"temperature": 0.5}, [100 / 146, 36 / 146, 9 / 146, 1 / 146]),
        ({"temperature": 0.5, "top_p": 0.6}, [1, 0, 0, 0]),  # temperature is applied first
        ({"temperature": 100.0, "top_p": 0.6}, [0.336, 0.333, 0.331, 0]),
    ],
)
def test_filter_returns_the_expected_probabilities(options, expected):
    probabilities = filter_probabilities(np.log([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]), sampling(**options))
    probabilities /= probabilities.sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, [expected, expected[::-1]], atol=1e-3)


def test_filter_keeps_ties_at_the_cutoff():
    assert np.count_nonzero(filter_probabilities(np.log([[0.3, 0.3, 0.3, 0.1]]), sampling(top_k=1))) == 3


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
def test_token_frequencies_match_the_probabilities(options, expected):
    count = 4000
    counts = Counter([*h.tokens, EOS][0] for seed in range(4) for h in sample(COIN, n_best=1000, seed=seed, **options))
    assert set(counts) <= set(expected)
    for token, probability in expected.items():
        bound = 4 * math.sqrt(probability * (1 - probability) / count)
        assert abs(counts[token] / count - probability) <= bound, token


def test_repetition_penalty_changes_the_probabilities():
    """The weights are 0.5 ** 2 and 0.5, so the unrepeated token has probability 2/3."""
    tables = table({BOS: {A: 1.0}, A: {A: 0.5, EOS: 0.5}})
    hypotheses = [
        h for seed in range(3) for h in sample(tables, n_best=1000, max_length=2, repetition_penalty=2.0, seed=seed)
    ]
    assert sum(h.finished for h in hypotheses) / 3000 == pytest.approx(2 / 3, abs=0.035)


def test_score_of_a_sample_is_that_of_the_unfiltered_model():
    tables = random_tables(5, 1, 8)
    hypotheses = sample(tables, n_best=20, temperature=2.0, top_k=5, max_length=6)
    assert len({h.tokens for h in hypotheses}) > 10
    for h in hypotheses:
        assert h.log_prob == pytest.approx(log_prob(tables[0], h.tokens, h.finished))
        assert h.score == pytest.approx(h.log_prob / (len(h.tokens) + h.finished))


def test_sample_alignments_follow_their_own_history():
    tables = random_tables(6, 1, 8)
    for h in search(TableDecoder(tables), [SOURCE], sampling(n_best=7, max_length=5), alignments=True)[0]:
        inputs = [BOS, *h.tokens][: len(h.tokens) + h.finished]
        history = 0
        for step, (token, weights) in enumerate(zip(inputs, h.alignment, strict=True), 1):
            history = history * 8 + token
            assert weights.tolist() == [step, token, history]


def test_samples_depend_only_on_the_seed():
    tables = random_tables(8, 1, 9)
    first = sample(tables, n_best=6, seed=1, max_length=12)
    assert sample(tables, n_best=6, seed=1, max_length=12) == first
    assert sample(tables, n_best=6, seed=2, max_length=12) != first


def test_n_best_and_max_length_do_not_change_samples():
    tables = random_tables(8, 1, 9)
    few, many = sample(tables, n_best=2, max_length=5), sample(tables, n_best=5, max_length=12)
    assert len({h.tokens for h in many}) == 5
    assert [h.tokens[:5] for h in many[:2]] == [h.tokens for h in few]


def test_samples_do_not_depend_on_the_batch_order():
    decoder = TableDecoder(np.repeat(random_tables(9, 1, 9), 3, 0))
    sources = [[0, 5, 3], [1, 6, 7, 3], [2, 5, 5, 5, 3]]
    config = sampling(n_best=3, max_length=10)
    hypotheses = search(decoder, sources, config)
    assert len({h.tokens for n_best in hypotheses for h in n_best}) == 9
    assert search(decoder, sources[::-1], config) == hypotheses[::-1]


def test_runtime_noise_does_not_change_samples():
    tables = random_tables(10, 1, 50)
    noisy = tables + 1e-6 * np.random.default_rng(0).normal(size=tables.shape)
    options = {"n_best": 50, "max_length": 10, "top_k": 20, "top_p": 0.9}
    same = sum(a.tokens == b.tokens for a, b in zip(sample(tables, **options), sample(noisy, **options), strict=True))
    assert same >= 49


def test_pad_and_bos_are_never_sampled():
    tables = table({BOS: {PAD: 0.5, BOS: 0.4, A: 0.1}, A: {PAD: 0.9, EOS: 0.1}})
    assert {h.tokens for h in sample(tables, n_best=50)} == {(A,)}
    [forced] = search(TableDecoder(tables), [SOURCE], sampling(max_length=2), prefixes=[[BOS, A]])[0]
    assert forced.tokens == (BOS, A)


def test_random_numbers_are_generated_on_demand():
    """A max_length that is never reached costs nothing, and the numbers equal those of one call."""
    [hypothesis] = sample(table({BOS: {A: 0.5, B: 0.5}, A: {EOS: 1.0}, B: {EOS: 1.0}}), seed=5, max_length=10**12)
    assert hypothesis.finished
    sampler = Sampler(sampling(seed=5), [SOURCE])
    numbers = np.random.default_rng([5, 0, *SOURCE]).random(20)
    uniform = np.log(np.full((1, 1, 1000), 0.001))
    samples = [int(sampler.draw(uniform)[0, 0, 0]) for _ in range(20)]
    assert np.abs(samples - 1000 * numbers).max() <= 1.0


def test_only_tokens_after_the_prefix_are_sampled():
    decoder = TableDecoder(random_tables(11, 1, 9))
    [hypotheses] = search(decoder, [SOURCE], sampling(n_best=9, max_length=8), prefixes=[[4, 4, 7]])
    assert {h.tokens[:3] for h in hypotheses} == {(4, 4, 7)}
    assert len({h.tokens[3:] for h in hypotheses}) > 4


def test_last_token_can_be_sampled():
    """The largest random number is still below the total probability."""
    sampler = Sampler(sampling(), [SOURCE])
    sampler._streams = [SimpleNamespace(random=iter([1 - 2**-53, 0.0]).__next__)]
    assert sampler.draw(np.log([[[0.25, 0.75, 1e-300]]])).tolist() == [[[1]]]
    assert sampler.draw(np.array([[[-np.inf, -np.inf, 0.0]]])).tolist() == [[[2]]]


def test_model_without_probabilities_has_score_nan():
    for value in (np.nan, -np.inf):
        [hypothesis] = sample(np.full((1, 6, 6), value), max_length=3)
        assert (hypothesis.tokens, math.isnan(hypothesis.score)) == ((), True)
