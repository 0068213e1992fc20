"""Each search option on small tables of probabilities, compared with enumeration.

Enumeration scores each sentence of the table in plain Python, by the definition of the option.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from enumeration import Sentence, problems, ranking
from hypothesis import given, settings
from hypothesis import strategies as st
from table_decoder import SOURCE, A, B, TableDecoder, log_prob, random_tables, table

from edge_attn.decoding.beam_search import check, search
from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.decoding.options import SearchConfig
from edge_attn.decoding.scores import UNSEEN
from edge_attn.errors import UsageError
from edge_attn.text.tokenizers import BOS, EOS, PAD, UNK

C = 6


def hypotheses_of(tables: np.ndarray, config: SearchConfig, prefix: Sequence[int] = (), **decoder) -> list[Hypothesis]:
    return search(TableDecoder(tables, **decoder), [SOURCE], config, prefixes=[prefix])[0]


def tokens_of(hypotheses: Sequence[Hypothesis]) -> list[tuple[int, ...]]:
    return [hypothesis.tokens for hypothesis in hypotheses]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(problems())
def test_exhaustive_beam_matches_enumeration(problem):
    tables, attend, prefix, config = problem
    expected = ranking(tables[0], config, prefix, attend if config.coverage_penalty else None)
    hypotheses = hypotheses_of(tables, config, prefix, attend=attend)
    if not expected:  # the options exclude every sentence
        assert (tokens_of(hypotheses), math.isnan(hypotheses[0].score)) == ([()], True)
        return
    assert {(h.tokens, h.finished) for h in hypotheses} == {sentence for _, sentence in expected}
    np.testing.assert_allclose([h.score for h in hypotheses], [score for score, _ in expected], rtol=1e-9)
    for hypothesis in hypotheses:
        assert hypothesis.log_prob == pytest.approx(log_prob(tables[0], hypothesis.tokens, hypothesis.finished))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.integers(1, 5))
def test_score_equals_that_of_the_forced_sentence(problem, beam):
    tables, attend, prefix, config = problem
    config = SearchConfig(**{**vars(config), "beam": beam, "n_best": beam})
    for hypothesis in hypotheses_of(tables, config, prefix, attend=attend):
        if math.isnan(hypothesis.score):
            continue
        prefix = (*hypothesis.tokens, EOS) if hypothesis.finished else hypothesis.tokens
        [forced] = hypotheses_of(tables, config, prefix, attend=attend)
        assert (forced.tokens, forced.finished) == (hypothesis.tokens, hypothesis.finished)
        assert (forced.score, forced.log_prob) == pytest.approx((hypothesis.score, hypothesis.log_prob))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.permutations(range(5)),
    st.sampled_from(
        [
            {"beam": 3, "n_best": 3, "coverage_penalty": 0.3, "repetition_penalty": 1.4, "no_repeat_ngram": 2},
            {"beam": 4, "n_best": 4, "groups": 2, "diversity": 0.7, "min_length": 2},
            {"beam": 2, "alternatives": 3, "suppress": (4,)},
            {"beam": 1, "sample": True, "n_best": 3, "seed": 5, "top_p": 0.9},
        ]
    ),
)
def test_batch_does_not_change_hypotheses(seed, order, options):
    random = np.random.default_rng(seed)
    decoder = TableDecoder(random_tables(seed, 5, 7), attend=random.dirichlet([0.5] * 3, 7))
    config = SearchConfig(**options, max_length=8)
    prefixes = [[4, 5, 6][: i % 4] for i in range(5)]
    sources = [[i, *[0] * 2] for i in range(5)]
    batched = search(decoder, [sources[i] for i in order], config, prefixes=[prefixes[i] for i in order])
    alone = [search(decoder, [sources[i]], config, prefixes=[prefixes[i]])[0] for i in order]
    assert batched == alone


# ---- each option on its own


@pytest.mark.parametrize(
    ("kind", "alpha", "best"),
    [("none", 1.0, ()), ("avg", 0.0, ()), ("avg", 1.0, (A,)), ("wu", 1.0, ()), ("wu", 5.0, (A,))],
)
def test_length_penalty_kind_selects_the_best_sentence(kind, alpha, best):
    """Scores are log(0.4) / 1 and log(0.3) / d. The longer sentence wins for d = 2 and (7/6)**5 = 2.16, not for 7/6."""
    tables = table({BOS: {EOS: 0.4, A: 0.6}, A: {EOS: 0.5, B: 0.5}, B: {EOS: 1.0}})
    config = SearchConfig(6, 2, alpha, 2, length_penalty_kind=kind)
    hypotheses = hypotheses_of(tables, config)
    assert hypotheses[0].tokens == best
    divisor = {"none": 1.0, "avg": 2**alpha, "wu": (7 / 6) ** alpha}[kind]
    longer = next(hypothesis for hypothesis in hypotheses if hypothesis.tokens == (A,))
    assert longer.score == pytest.approx(math.log(0.3) / divisor)


def test_coverage_penalty_prefers_full_coverage():
    tables = table({BOS: {A: 0.6, B: 0.4}, A: {EOS: 1.0}, B: {EOS: 1.0}})
    attend = np.zeros((6, 3))
    attend[BOS], attend[A], attend[B] = [0.5, 0.5, 0.0], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]
    plain, penalized = (
        hypotheses_of(tables, SearchConfig(4, 2, 0.0, coverage_penalty=beta), attend=attend) for beta in (0.0, 1.0)
    )
    assert tokens_of(plain) == [(A,), (B,)]
    assert tokens_of(penalized) == [(B,), (A,)]
    penalties = [math.log(0.6) + math.log(0.6) + math.log(0.8), math.log(0.8) + math.log(0.2)]
    assert [h.score for h in penalized] == pytest.approx([math.log(0.4) + penalties[0], math.log(0.6) + penalties[1]])
    assert [h.log_prob for h in penalized] == pytest.approx([math.log(0.4), math.log(0.6)])


def test_unattended_source_position_has_a_finite_penalty():
    attend = np.tile([1.0, 0.0, 0.0], (6, 1))
    [hypothesis] = hypotheses_of(table({BOS: {EOS: 1.0}}), SearchConfig(1, 1, 0.0, coverage_penalty=1.0), attend=attend)
    assert hypothesis.score == pytest.approx(2 * math.log(UNSEEN))


def test_coverage_penalty_ignores_padding():
    """The first of two sources has one position; later weights are on padding."""
    decoder = TableDecoder(np.repeat(table({BOS: {EOS: 1.0}}), 2, 0), attend=np.tile([0.5, 0.0, 0.5], (6, 1)))
    short, long = search(decoder, [[0], [1, 0, 0]], SearchConfig(1, 1, 0.0, coverage_penalty=1.0))
    assert short[0].score == pytest.approx(math.log(0.5))
    assert long[0].score == pytest.approx(2 * math.log(0.5) + math.log(UNSEEN))


def test_coverage_penalty_without_attention_is_refused():
    with pytest.raises(UsageError, match="the coverage penalty needs alignments, and this model has no attention"):
        hypotheses_of(table({BOS: {EOS: 1.0}}), SearchConfig(coverage_penalty=0.1), aligned=False)


def test_repetition_penalty_prefers_a_new_token():
    """A repeated A scores 2 * log(0.5) = log(0.25), less than log(0.4) of B. The log-probability has no penalty."""
    tables = table({BOS: {A: 1.0}, A: {A: 0.5, B: 0.4, EOS: 0.1}, B: {EOS: 1.0}})
    assert hypotheses_of(tables, SearchConfig(1, max_length=3))[0].tokens == (A, A, A)
    [penalized] = hypotheses_of(tables, SearchConfig(1, max_length=3, repetition_penalty=2.0))
    assert (penalized.tokens, penalized.log_prob) == ((A, B), pytest.approx(math.log(0.4)))
    forced = hypotheses_of(tables, SearchConfig(1, 1, 0.0, max_length=4, repetition_penalty=2.0), [A, A, B])[0]
    assert forced.log_prob == pytest.approx(math.log(0.5 * 0.4))
    assert forced.score == pytest.approx(math.log(0.25 * 0.4))


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, (A, A, A, A, A, A)), (1, (A, B)), (2, (A, A, B)), (3, (A, A, A, B)), (7, (A, A, A, A, A, A))],
)
def test_no_ngram_is_repeated(size, expected):
    """Without the option, A is repeated up to max_length."""
    tables = table({BOS: {A: 1.0}, A: {A: 0.6, B: 0.4}, B: {EOS: 1.0}})
    assert hypotheses_of(tables, SearchConfig(1, max_length=6, no_repeat_ngram=size))[0].tokens == expected


def test_ngram_of_the_prefix_is_not_repeated():
    tables = table({BOS: {A: 1.0}, A: {B: 1.0}, B: {A: 0.7, C: 0.3}, C: {EOS: 1.0}}, 7)
    assert hypotheses_of(tables, SearchConfig(1, no_repeat_ngram=2), [A, B, A, B])[0].tokens == (A, B, A, B, C)


@pytest.mark.parametrize(("min_length", "expected"), [(0, ()), (1, (A,)), (2, (A, A)), (4, (A, A, A, A))])
def test_sentence_has_at_least_min_length_tokens(min_length, expected):
    tables = table({BOS: {EOS: 0.9, A: 0.1}, A: {EOS: 0.9, A: 0.1}})
    [hypothesis] = hypotheses_of(tables, SearchConfig(1, 1, 0.0, 10, min_length=min_length))
    assert (hypothesis.tokens, hypothesis.finished) == (expected, True)
    assert hypothesis.log_prob == pytest.approx(math.log(0.9 * 0.1**min_length))


def test_suppressed_token_appears_only_in_a_prefix():
    tables = table({BOS: {A: 0.6, B: 0.4}, A: {EOS: 1.0}, B: {A: 0.9, EOS: 0.1}})
    config = SearchConfig(4, 4, suppress=(A,))
    assert tokens_of(hypotheses_of(tables, config)) == [(B,)]
    assert tokens_of(hypotheses_of(tables, config, [A])) == [(A,)]


PAD_AND_BOS = table({BOS: {PAD: 0.5, BOS: 0.3, A: 0.15, EOS: 0.05}, A: {PAD: 0.9, EOS: 0.1}, PAD: {EOS: 1.0}})


@pytest.mark.parametrize(
    "options",
    [{"min_length": 1}, {"suppress": (B,)}, {"no_repeat_ngram": 2}, {"repetition_penalty": 1.1}, {"alternatives": 3}],
)
def test_pad_and_bos_are_excluded_from_full_rows(options):
    first = {
        h.tokens[:1]
        for h in hypotheses_of(PAD_AND_BOS, SearchConfig(5, 1 if "alternatives" in options else 5, **options))
    }
    assert first <= {(), (A,)}
    assert (PAD,) in tokens_of(hypotheses_of(PAD_AND_BOS, SearchConfig(5, 5)))  # a candidate of the graph
    assert tokens_of(hypotheses_of(PAD_AND_BOS, SearchConfig(5, **options), [PAD])) == [(PAD,)]  # a token of the prefix


def test_pad_is_excluded_beside_a_longer_prefix():
    decoder = TableDecoder(np.repeat(PAD_AND_BOS, 2, 0))
    both = search(decoder, [[0, 0, 0], [1, 0, 0]], SearchConfig(2), prefixes=[[], [A, A, A]])
    assert both[0] == search(decoder, [[0, 0, 0]], SearchConfig(2))[0]


def test_options_excluding_every_sentence_have_score_nan():
    tables = table({BOS: {A: 1.0}, A: {EOS: 1.0}})
    [hypothesis] = hypotheses_of(tables, SearchConfig(2, suppress=(A,)))
    assert (hypothesis.tokens, hypothesis.finished, math.isnan(hypothesis.score)) == ((), False, True)


@pytest.mark.parametrize("options", [{"beam": 4}, {"suppress": (6,)}, {"suppress": (EOS,)}, {"coverage_penalty": 0.1}])
def test_unsupported_options_are_refused_before_the_search(options):
    decoder = TableDecoder(random_tables(1, 1, 6), candidates=4, aligned=False)
    with pytest.raises(UsageError):
        check(decoder, SearchConfig(**{"beam": 2, **options}))
    check(decoder, SearchConfig(2, suppress=(A,)))


# ---- prefixes and alternatives


def test_log_prob_includes_the_prefix():
    tables = table({BOS: {A: 0.9, B: 0.1}, A: {EOS: 1.0}, B: {C: 0.7, EOS: 0.3}, C: {EOS: 1.0}}, 7)
    hypotheses = hypotheses_of(tables, SearchConfig(3, 2, 0.0), [B])
    assert tokens_of(hypotheses) == [(B, C), (B,)]
    assert [h.log_prob for h in hypotheses] == pytest.approx([math.log(0.1 * 0.7), math.log(0.1 * 0.3)])


def test_prefix_may_be_outside_the_candidates():
    tables = random_tables(4, 1, 12)
    unlikely = int(tables[0, BOS].argmin()) if tables[0, BOS].argmin() != EOS else 5
    hypotheses = hypotheses_of(tables, SearchConfig(2, 2, max_length=6), [unlikely, unlikely], candidates=3)
    assert all(hypothesis.tokens[:2] == (unlikely, unlikely) for hypothesis in hypotheses)


def test_prefix_of_a_whole_sentence_is_scored():
    tables = random_tables(7, 1, 6)
    [hypothesis] = hypotheses_of(tables, SearchConfig(4, 4, 1.0), [A, B, EOS])
    assert (hypothesis.tokens, hypothesis.finished) == ((A, B), True)
    assert hypothesis.log_prob == pytest.approx(log_prob(tables[0], (A, B), True))


def test_each_sentence_of_a_batch_has_its_prefix():
    decoder = TableDecoder(random_tables(2, 3, 7))
    prefixes = [[], [A], [B, A, C]]
    hypotheses = search(decoder, [[i, 0, 0] for i in range(3)], SearchConfig(2, max_length=6), prefixes=prefixes)
    assert [list(hyps[0].tokens[: len(prefix)]) for hyps, prefix in zip(hypotheses, prefixes, strict=True)] == prefixes


@pytest.mark.parametrize(
    ("options", "prefixes", "message"),
    [
        ({}, [[A], [A]], "expected a prefix for each of the 1 sentences, got 2"),
        ({}, [], "expected a prefix for each of the 1 sentences, got 0"),
        ({}, [[A, 6]], "a prefix contains the token 6, the vocabulary has 6 entries"),
        ({}, [[-1]], "a prefix contains the token -1, the vocabulary has 6 entries"),
        ({}, [[A, EOS, A]], r"a prefix has tokens after its end symbol \(3\)"),
        ({"max_length": 2}, [[A, A, A]], "a prefix has 3 tokens, and `max_length` leaves room for 2"),
        ({"max_length": 2, "alternatives": 2}, [[A, A]], "a prefix has 2 tokens, and `max_length` leaves room for 1"),
        ({"suppress": (A, 6)}, None, "suppress contains the token 6, the vocabulary has 6 entries"),
        ({"suppress": (EOS,)}, None, r"suppress contains the end symbol \(3\)"),
    ],
)
def test_option_or_prefix_outside_the_model_is_refused(options, prefixes, message):
    with pytest.raises(UsageError, match=message):
        search(TableDecoder(random_tables(1, 1, 6)), [SOURCE], SearchConfig(2, **options), prefixes=prefixes)


def test_alternatives_start_with_the_likeliest_tokens():
    tables = table(
        {BOS: {A: 1.0}, A: {B: 0.5, C: 0.3, EOS: 0.2}, B: {EOS: 0.3, A: 0.3, C: 0.4}, C: {EOS: 1.0}}, vocabulary=7
    )
    config = SearchConfig(3, 1, 0.0, 6, alternatives=3)
    assert tokens_of(hypotheses_of(tables, config, [A])) == [(A, B, C), (A, C), (A,)]
    assert tokens_of(hypotheses_of(tables, SearchConfig(**{**vars(config), "alternatives": 9}), [A])) == [
        (A, B, C),
        (A, C),
        (A,),
    ]
    assert tokens_of(hypotheses_of(tables, SearchConfig(**{**vars(config), "suppress": (C,)}), [A])) == [(A, B), (A,)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.integers(1, 4))
def test_alternatives_match_enumeration(problem, count):
    tables, attend, prefix, config = problem
    prefix = prefix[: config.max_length - 1]
    searched = SearchConfig(**{**vars(config), "n_best": 1, "alternatives": count})
    hypotheses = hypotheses_of(tables, searched, prefix, attend=attend)
    position, expected = len(prefix), ranking(tables[0], searched, prefix, attend if config.coverage_penalty else None)
    firsts = [(s[0] + (EOS,) * s[1])[position] for _, s in expected]
    best = {token: score for token, (score, _) in reversed(list(zip(firsts, expected, strict=True)))}
    if not best:
        assert math.isnan(hypotheses[0].score)
        return
    history = list(prefix)
    last = ([BOS, *history])[-1]

    def likelihood(token: int) -> float:
        return float(tables[0, last, token]) * (config.repetition_penalty if token in history else 1.0)

    tokens = [(h.tokens + (EOS,) * h.finished)[position] for h in hypotheses]
    # an alternative that no allowed sentence continues counts, but is not returned
    assert tokens == sorted(tokens, key=likelihood, reverse=True)
    assert len(set(tokens)) == len(tokens) <= count
    assert [h.score for h in hypotheses] == pytest.approx([best[token] for token in tokens])
    if len(best) <= count and not config.no_repeat_ngram:
        assert set(tokens) == set(best)


# ---- diverse beam


@pytest.mark.parametrize(("diversity", "expected"), [(0.3, [(A,)]), (0.5, [(A,), (B,)])])
def test_diversity_penalizes_tokens_of_earlier_groups(diversity, expected):
    """log(0.4) is between log(0.6) - 0.5 and log(0.6) - 0.3. A sentence of both groups is returned once."""
    tables = table({BOS: {A: 0.6, B: 0.4}, A: {EOS: 1.0}, B: {EOS: 1.0}})
    hypotheses = hypotheses_of(tables, SearchConfig(2, 2, 0.0, groups=2, diversity=diversity))
    assert tokens_of(hypotheses) == expected
    assert hypotheses[-1].score == pytest.approx(math.log(0.6 if len(expected) == 1 else 0.4))


def diverse_beam_search(rows: np.ndarray, config: SearchConfig) -> list[list[Sentence]]:
    """Return the sentences of each group by the algorithm of the paper, in plain Python."""
    size = config.beam // config.groups
    beams: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())] for _ in range(config.groups)]
    finished: list[list[Sentence]] = [[] for _ in range(config.groups)]
    for _ in range(config.max_length):
        chosen: list[int] = []
        for g in range(config.groups):
            if len(finished[g]) >= size:
                continue
            options = [
                (total + rows[([BOS, *tokens])[-1], token], tokens, token)
                for total, tokens in beams[g]
                for token in range(len(rows))
            ]
            options.sort(key=lambda o: -(o[0] - config.diversity * chosen.count(o[2])))
            finished[g] += [(tokens, True) for _, tokens, token in options[:size] if token == EOS]
            beams[g] = [(total, (*tokens, token)) for total, tokens, token in options if token != EOS][:size]
            chosen += [tokens[-1] for _, tokens in beams[g]]
    for g in range(config.groups):
        finished[g] += [(tokens, False) for _, tokens in beams[g]][: max(0, size - len(finished[g]))]
    return finished


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([(2, 1), (2, 2), (3, 1), (3, 2)]), st.sampled_from([0.2, 1.0, 50.0]))
def test_groups_match_the_algorithm_of_the_paper(seed, shape, diversity):
    groups, size = shape
    rows = random_tables(seed, 1, 9)
    config = SearchConfig(groups * size, groups * size, 0.0, 5, groups=groups, diversity=diversity)
    expected = {sentence for group in diverse_beam_search(rows[0], config) for sentence in group}
    for candidates in (None, groups * size + 1):
        hypotheses = hypotheses_of(rows, config, candidates=candidates)
        assert {(h.tokens, h.finished) for h in hypotheses} <= expected
        assert len(hypotheses) == min(len(expected), config.n_best)
        assert [h.score for h in hypotheses if h.finished] == sorted(
            (h.score for h in hypotheses if h.finished), reverse=True
        )


# ---- outputs read from the runtime


@pytest.mark.parametrize("seed", range(8))
def test_full_rows_keep_the_vocabulary_order_of_ties(seed):
    rows = np.log(np.random.default_rng(seed).dirichlet(np.ones(40), 40))[None]
    rows[:, :, [11, 23, 37]] = -0.5
    rows[:, :, [PAD, UNK, BOS]] = -np.inf
    plain, constrained = (
        hypotheses_of(rows, SearchConfig(9, 9, max_length=5, suppress=tokens)) for tokens in ((), (1,))
    )
    assert plain == constrained


@pytest.mark.parametrize(
    ("options", "prefix", "needs_rows"),
    [
        ({"beam": 1}, (), False),
        ({"beam": 4, "length_penalty_kind": "wu"}, (), False),
        ({"beam": 4, "groups": 2, "diversity": 1.0}, (), False),
        ({"beam": 2}, (A,), True),
        ({"beam": 2, "min_length": 1}, (), True),
        ({"beam": 2, "no_repeat_ngram": 2}, (), True),
        ({"beam": 2, "repetition_penalty": 1.1}, (), True),
        ({"beam": 2, "suppress": (B,)}, (), True),
        ({"beam": 1, "sample": True}, (), True),
    ],
)
def test_full_rows_are_read_only_if_an_option_needs_them(options, prefix, needs_rows):
    decoder = TableDecoder(random_tables(3, 1, 8))
    search(decoder, [SOURCE], SearchConfig(**options, max_length=4), prefixes=[prefix])
    assert ("log_probs" in decoder.read) == needs_rows
    assert "alignment" not in decoder.read
    if not needs_rows:
        assert decoder.read == {"candidates", "candidate_ids"}
