"""Beam search on a table of probabilities, small enough to enumerate every sentence."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_decoder import SOURCE, A, B, TableDecoder, log_prob, random_tables, table

from edge_attn.decoding.beam_search import search
from edge_attn.decoding.decoder import pad_sources, teacher_force
from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import UsageError
from edge_attn.text.tokenizers import BOS, EOS, PAD


def hypotheses_of(
    tables: np.ndarray, beam: int, n_best: int = 1, penalty: float = 0.0, longest: int = 10
) -> list[Hypothesis]:
    return search(TableDecoder(tables), [SOURCE], SearchConfig(beam, n_best, penalty, longest), True)[0]


GREEDY_MISSES = table({BOS: {A: 0.6, B: 0.4}, A: {A: 0.5, EOS: 0.5}, B: {EOS: 1.0}})


def test_beam_of_two_outscores_greedy_search():
    greedy, beam = hypotheses_of(GREEDY_MISSES, 1)[0], hypotheses_of(GREEDY_MISSES, 2)[0]
    assert greedy.tokens[0] == A
    assert beam.tokens == (B,)
    assert beam.log_prob == pytest.approx(math.log(0.4))
    assert beam.log_prob > greedy.log_prob


def test_length_penalty_prefers_the_longer_sentence():
    tables = table({BOS: {EOS: 0.37, A: 0.63}, A: {B: 0.6, A: 0.4}, B: {EOS: 0.6, B: 0.4}})
    assert hypotheses_of(tables, 4, penalty=0.0)[0].tokens == ()
    longer = hypotheses_of(tables, 4, penalty=1.0)[0]
    assert longer.tokens == (A, B)
    assert longer.score == pytest.approx(longer.log_prob / 3)


def test_truncated_hypothesis_ranks_below_finished_ones():
    tables = table({BOS: {A: 0.99, EOS: 0.01}, A: {A: 0.99, EOS: 0.01}})
    hypotheses = hypotheses_of(tables, 4, n_best=4, longest=3)
    assert [hypothesis.finished for hypothesis in hypotheses] == [True, True, True, False]
    assert hypotheses[-1].tokens == (A, A, A)
    assert hypotheses[-1].log_prob > hypotheses[0].log_prob
    scores = [hypothesis.score for hypothesis in hypotheses[:3]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("longest", [1, 2, 7])
def test_hypothesis_is_truncated_at_max_length(longest):
    truncated = hypotheses_of(table({BOS: {A: 1.0}, A: {A: 1.0}}), 2, longest=longest)[0]
    assert (truncated.tokens, truncated.finished) == ((A,) * longest, False)
    assert len(truncated.alignment) == longest


def all_sentences(table_: np.ndarray, longest: int, penalty: float) -> list[tuple[tuple[int, ...], bool, float]]:
    """Return each sentence of the table, best first; those truncated at max_length come last."""
    words = [token for token in range(len(table_)) if token != EOS]
    finished = [tokens for size in range(longest) for tokens in itertools.product(words, repeat=size)]
    truncated = list(itertools.product(words, repeat=longest))
    scored = [(t, True, log_prob(table_, t, True) / (len(t) + 1) ** penalty) for t in finished]
    scored += [(t, False, log_prob(table_, t, False) / len(t) ** penalty) for t in truncated]
    return sorted(scored, key=lambda item: (not item[1], -item[2]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([4, 5]), st.integers(1, 4), st.sampled_from([0.0, 0.6, 1.0]))
def test_exhaustive_beam_matches_enumeration(seed, vocabulary, longest, penalty):
    tables = random_tables(seed, 1, vocabulary)
    expected = all_sentences(tables[0], longest, penalty)
    hypotheses = hypotheses_of(tables, len(expected), len(expected), penalty, longest)
    assert {(h.tokens, h.finished) for h in hypotheses} == {item[:2] for item in expected}
    assert [h.finished for h in hypotheses] == [item[1] for item in expected]
    np.testing.assert_allclose([h.score for h in hypotheses], [item[2] for item in expected], rtol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(4, 9), st.integers(1, 6), st.integers(1, 9))
def test_log_prob_and_alignment_match_the_steps(seed, vocabulary, beam, longest):
    tables = random_tables(seed, 1, vocabulary)
    hypotheses = hypotheses_of(tables, beam, beam, 1.0, longest)
    assert 1 <= len(hypotheses) <= beam
    assert len({(hypothesis.tokens, hypothesis.finished) for hypothesis in hypotheses}) == len(hypotheses)
    for hypothesis in hypotheses:
        assert hypothesis.log_prob == pytest.approx(log_prob(tables[0], hypothesis.tokens, hypothesis.finished))
        inputs = [BOS, *hypothesis.tokens][: len(hypothesis.tokens) + hypothesis.finished]
        histories = itertools.accumulate(inputs, lambda history, token: history * vocabulary + token)
        expected = [
            [step, token, history] for step, (token, history) in enumerate(zip(inputs, histories, strict=True), 1)
        ]
        np.testing.assert_array_equal(hypothesis.alignment, expected)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 4), st.permutations(range(5)))
def test_batch_does_not_change_hypotheses(seed, beam, order):
    decoder, config = TableDecoder(random_tables(seed, 5, 7)), SearchConfig(beam, beam, 1.0, 8)
    batched = search(decoder, [[i, 0, 0] for i in order], config)
    assert batched == [search(decoder, [[i, 0, 0]], config)[0] for i in order]


def test_teacher_forcing_sums_to_the_log_prob():
    tables = random_tables(3, 2, 6)
    tables[:, :, EOS] = -0.5
    decoder = TableDecoder(tables)
    sources = [[0, 0, 0], [1, 0, 0]]
    best = [hypotheses[0] for hypotheses in search(decoder, sources, SearchConfig(3, 1, 1.0, 30))]
    assert all(hypothesis.finished for hypothesis in best)
    steps = [outputs["log_probs"][:, 0] for _, outputs in teacher_force(decoder, sources, [h.tokens for h in best])]
    for i, hypothesis in enumerate(best):
        total = sum(steps[t][i, token] for t, token in enumerate((*hypothesis.tokens, EOS)))
        assert total == pytest.approx(hypothesis.log_prob)


def test_beam_needs_one_candidate_more_than_its_width():
    decoder = TableDecoder(random_tables(1, 1, 8), candidates=4)
    assert len(search(decoder, [SOURCE], SearchConfig(3, 3))[0]) == 3
    with pytest.raises(UsageError, match=r"a beam of 4 needs 5 candidates a step, this bundle has 4; use `beam` 3"):
        search(decoder, [SOURCE], SearchConfig(4))


def test_full_vocabulary_of_candidates_allows_any_beam():
    tables = table({BOS: {A: 0.5, EOS: 0.5}, A: {EOS: 1.0}})
    hypotheses = hypotheses_of(tables, 50, n_best=50)
    assert [hypothesis.tokens for hypothesis in hypotheses] == [(), (A,)]


def test_impossible_hypotheses_are_not_returned():
    hypotheses = hypotheses_of(table({BOS: {EOS: 1.0}}, vocabulary=4), 3, n_best=3)
    assert [(hypothesis.tokens, hypothesis.finished) for hypothesis in hypotheses] == [((), True)]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_model_without_probabilities_has_score_nan(value):
    hypotheses = hypotheses_of(np.full((1, 6, 6), value), 2, n_best=2, longest=3)
    assert [hypothesis.tokens for hypothesis in hypotheses] == [()]
    assert math.isnan(hypotheses[0].score)
    assert not hypotheses[0].finished


def test_alignments_are_returned_only_on_request():
    assert search(TableDecoder(GREEDY_MISSES), [SOURCE], SearchConfig(2))[0][0].alignment is None


def test_sources_are_padded_to_the_longest():
    padded, lengths = pad_sources([[7, EOS], [EOS], [7, 8, 9]])
    assert padded.tolist() == [[7, EOS, PAD], [EOS, PAD, PAD], [7, 8, 9]]
    assert lengths.tolist() == [2, 1, 3]
