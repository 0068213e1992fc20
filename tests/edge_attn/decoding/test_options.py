"""Every option of the search on small tables of probabilities, where the right answer is known by enumeration: each
sentence that the table can say is scored, in plain Python, by the option's own definition."""

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


def find(tables: np.ndarray, config: SearchConfig, prefix: Sequence[int] = (), **decoder) -> list[Hypothesis]:
    return search(TableDecoder(tables, **decoder), [SOURCE], config, prefixes=[prefix])[0]


def said(hypotheses: Sequence[Hypothesis]) -> list[tuple[int, ...]]:
    return [hypothesis.tokens for hypothesis in hypotheses]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(problems())
def test_a_beam_as_large_as_the_space_finds_what_enumeration_finds(problem):
    tables, attend, prefix, config = problem
    expected = ranking(tables[0], config, prefix, attend if config.coverage_penalty else None)
    found = find(tables, config, prefix, attend=attend)
    if not expected:  # the options leave nothing
        assert (said(found), math.isnan(found[0].score)) == ([()], True)
        return
    assert {(h.tokens, h.finished) for h in found} == {sentence for _, sentence in expected}
    np.testing.assert_allclose([h.score for h in found], [score for score, _ in expected], rtol=1e-9)
    for hypothesis in found:
        assert hypothesis.log_prob == pytest.approx(log_prob(tables[0], hypothesis.tokens, hypothesis.finished))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.integers(1, 5))
def test_a_score_is_that_of_the_sentence_when_it_is_forced(problem, beam):
    tables, attend, prefix, config = problem
    config = SearchConfig(**{**vars(config), "beam": beam, "n_best": beam})
    for hypothesis in find(tables, config, prefix, attend=attend):
        if math.isnan(hypothesis.score):
            continue
        whole = (*hypothesis.tokens, EOS) if hypothesis.finished else hypothesis.tokens
        [again] = find(tables, config, whole, attend=attend)
        assert (again.tokens, again.finished) == (hypothesis.tokens, hypothesis.finished)
        assert (again.score, again.log_prob) == pytest.approx((hypothesis.score, hypothesis.log_prob))


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
def test_a_sentence_is_answered_alone_as_among_others(seed, order, options):
    random = np.random.default_rng(seed)
    decoder = TableDecoder(random_tables(seed, 5, 7), attend=random.dirichlet([0.5] * 3, 7))
    config = SearchConfig(**options, max_length=8)
    prefixes = [[4, 5, 6][: i % 4] for i in range(5)]
    sources = [[i, *[0] * 2] for i in range(5)]
    together = search(decoder, [sources[i] for i in order], config, prefixes=[prefixes[i] for i in order])
    alone = [search(decoder, [sources[i]], config, prefixes=[prefixes[i]])[0] for i in order]
    assert together == alone


# ---- each option by hand


@pytest.mark.parametrize(
    ("kind", "alpha", "best"),
    [("none", 1.0, ()), ("avg", 0.0, ()), ("avg", 1.0, (A,)), ("wu", 1.0, ()), ("wu", 5.0, (A,))],
)
def test_a_length_penalty_of_each_kind_chooses_its_own_sentence(kind, alpha, best):
    """log(.4) and log(.3): over 1 and 2 the longer wins, over 1 and 7/6 the shorter; over 1 and (7/6)**5 = 2.16 not."""
    tables = table({BOS: {EOS: 0.4, A: 0.6}, A: {EOS: 0.5, B: 0.5}, B: {EOS: 1.0}})
    config = SearchConfig(6, 2, alpha, 2, length_penalty_kind=kind)
    found = find(tables, config)
    assert found[0].tokens == best
    divisor = {"none": 1.0, "avg": 2**alpha, "wu": (7 / 6) ** alpha}[kind]
    longer = next(hypothesis for hypothesis in found if hypothesis.tokens == (A,))
    assert longer.score == pytest.approx(math.log(0.3) / divisor)


def test_a_coverage_penalty_prefers_what_reads_the_whole_source():
    tables = table({BOS: {A: 0.6, B: 0.4}, A: {EOS: 1.0}, B: {EOS: 1.0}})
    attend = np.zeros((6, 3))
    attend[BOS], attend[A], attend[B] = [0.5, 0.5, 0.0], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]
    without, with_ = (
        find(tables, SearchConfig(4, 2, 0.0, coverage_penalty=beta), attend=attend) for beta in (0.0, 1.0)
    )
    assert said(without) == [(A,), (B,)]
    assert said(with_) == [(B,), (A,)]
    covered = [math.log(0.6) + math.log(0.6) + math.log(0.8), math.log(0.8) + math.log(0.2)]
    assert [h.score for h in with_] == pytest.approx([math.log(0.4) + covered[0], math.log(0.6) + covered[1]])
    assert [h.log_prob for h in with_] == pytest.approx([math.log(0.4), math.log(0.6)])


def test_a_source_position_that_nothing_attends_to_still_gives_a_number():
    attend = np.tile([1.0, 0.0, 0.0], (6, 1))
    [found] = find(table({BOS: {EOS: 1.0}}), SearchConfig(1, 1, 0.0, coverage_penalty=1.0), attend=attend)
    assert found.score == pytest.approx(2 * math.log(UNSEEN))


def test_a_coverage_penalty_leaves_padding_out():
    """The first of two sources has one position; what the decoder attends to past it is padding."""
    decoder = TableDecoder(np.repeat(table({BOS: {EOS: 1.0}}), 2, 0), attend=np.tile([0.5, 0.0, 0.5], (6, 1)))
    short, long = search(decoder, [[0], [1, 0, 0]], SearchConfig(1, 1, 0.0, coverage_penalty=1.0))
    assert short[0].score == pytest.approx(math.log(0.5))
    assert long[0].score == pytest.approx(2 * math.log(0.5) + math.log(UNSEEN))


def test_a_coverage_penalty_needs_attention():
    with pytest.raises(UsageError, match="the coverage penalty needs alignments, and this model has no attention"):
        find(table({BOS: {EOS: 1.0}}), SearchConfig(coverage_penalty=0.1), aligned=False)


def test_a_repetition_penalty_lets_something_new_come():
    """A again is worth log(.5) * 2 = log(.25): less than B's .4, and the log-probability stays the model's own."""
    tables = table({BOS: {A: 1.0}, A: {A: 0.5, B: 0.4, EOS: 0.1}, B: {EOS: 1.0}})
    assert find(tables, SearchConfig(1, max_length=3))[0].tokens == (A, A, A)
    [new] = find(tables, SearchConfig(1, max_length=3, repetition_penalty=2.0))
    assert (new.tokens, new.log_prob) == ((A, B), pytest.approx(math.log(0.4)))
    forced = find(tables, SearchConfig(1, 1, 0.0, max_length=4, repetition_penalty=2.0), [A, A, B])[0]
    assert forced.log_prob == pytest.approx(math.log(0.5 * 0.4))
    assert forced.score == pytest.approx(math.log(0.25 * 0.4))


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, (A, A, A, A, A, A)), (1, (A, B)), (2, (A, A, B)), (3, (A, A, A, B)), (7, (A, A, A, A, A, A))],
)
def test_no_ngram_comes_twice(size, expected):
    """A would come for ever; after B the only way on is A, or the end."""
    tables = table({BOS: {A: 1.0}, A: {A: 0.6, B: 0.4}, B: {EOS: 1.0}})
    assert find(tables, SearchConfig(1, max_length=6, no_repeat_ngram=size))[0].tokens == expected


def test_an_ngram_of_the_prefix_does_not_come_again():
    tables = table({BOS: {A: 1.0}, A: {B: 1.0}, B: {A: 0.7, C: 0.3}, C: {EOS: 1.0}}, 7)
    assert find(tables, SearchConfig(1, no_repeat_ngram=2), [A, B, A, B])[0].tokens == (A, B, A, B, C)


@pytest.mark.parametrize(("least", "expected"), [(0, ()), (1, (A,)), (2, (A, A)), (4, (A, A, A, A))])
def test_a_sentence_is_as_long_as_it_must_be(least, expected):
    tables = table({BOS: {EOS: 0.9, A: 0.1}, A: {EOS: 0.9, A: 0.1}})
    [found] = find(tables, SearchConfig(1, 1, 0.0, 10, min_length=least))
    assert (found.tokens, found.finished) == (expected, True)
    assert found.log_prob == pytest.approx(math.log(0.9 * 0.1**least))


def test_what_is_suppressed_never_comes_but_in_a_prefix():
    tables = table({BOS: {A: 0.6, B: 0.4}, A: {EOS: 1.0}, B: {A: 0.9, EOS: 0.1}})
    config = SearchConfig(4, 4, suppress=(A,))
    assert said(find(tables, config)) == [(B,)]
    assert said(find(tables, config, [A])) == [(A,)]


STRANGE = table({BOS: {PAD: 0.5, BOS: 0.3, A: 0.15, EOS: 0.05}, A: {PAD: 0.9, EOS: 0.1}, PAD: {EOS: 1.0}})


@pytest.mark.parametrize(
    "options",
    [{"min_length": 1}, {"suppress": (B,)}, {"no_repeat_ngram": 2}, {"repetition_penalty": 1.1}, {"alternatives": 3}],
)
def test_padding_and_the_beginning_are_no_words_where_whole_rows_are_ranked(options):
    first = {h.tokens[:1] for h in find(STRANGE, SearchConfig(5, 1 if "alternatives" in options else 5, **options))}
    assert first <= {(), (A,)}
    assert (PAD,) in said(find(STRANGE, SearchConfig(5, 5)))  # as the graph gives it
    assert said(find(STRANGE, SearchConfig(5, **options), [PAD])) == [(PAD,)]  # as the prefix asks for


def test_padding_is_no_word_beside_a_sentence_whose_prefix_is_longer():
    decoder = TableDecoder(np.repeat(STRANGE, 2, 0))
    both = search(decoder, [[0, 0, 0], [1, 0, 0]], SearchConfig(2), prefixes=[[], [A, A, A]])
    assert both[0] == search(decoder, [[0, 0, 0]], SearchConfig(2))[0]


def test_options_that_leave_nothing_to_say_are_answered_with_no_number():
    tables = table({BOS: {A: 1.0}, A: {EOS: 1.0}})
    [found] = find(tables, SearchConfig(2, suppress=(A,)))
    assert (found.tokens, found.finished, math.isnan(found.score)) == ((), False, True)


@pytest.mark.parametrize("options", [{"beam": 4}, {"suppress": (6,)}, {"suppress": (EOS,)}, {"coverage_penalty": 0.1}])
def test_what_no_sentence_can_be_searched_with_is_known_before_the_first(options):
    decoder = TableDecoder(random_tables(1, 1, 6), candidates=4, aligned=False)
    with pytest.raises(UsageError):
        check(decoder, SearchConfig(**{"beam": 2, **options}))
    check(decoder, SearchConfig(2, suppress=(A,)))


# ---- prefixes and alternatives


def test_a_prefix_is_what_the_sentence_begins_with_and_counts():
    tables = table({BOS: {A: 0.9, B: 0.1}, A: {EOS: 1.0}, B: {C: 0.7, EOS: 0.3}, C: {EOS: 1.0}}, 7)
    found = find(tables, SearchConfig(3, 2, 0.0), [B])
    assert said(found) == [(B, C), (B,)]
    assert [h.log_prob for h in found] == pytest.approx([math.log(0.1 * 0.7), math.log(0.1 * 0.3)])


def test_a_prefix_is_found_outside_the_candidates():
    tables = random_tables(4, 1, 12)
    last = int(tables[0, BOS].argmin()) if tables[0, BOS].argmin() != EOS else 5
    found = find(tables, SearchConfig(2, 2, max_length=6), [last, last], candidates=3)
    assert all(hypothesis.tokens[:2] == (last, last) for hypothesis in found)


def test_a_prefix_that_is_a_whole_sentence_is_scored():
    tables = random_tables(7, 1, 6)
    [found] = find(tables, SearchConfig(4, 4, 1.0), [A, B, EOS])
    assert (found.tokens, found.finished) == ((A, B), True)
    assert found.log_prob == pytest.approx(log_prob(tables[0], (A, B), True))


def test_each_sentence_of_a_batch_has_its_prefix():
    decoder = TableDecoder(random_tables(2, 3, 7))
    prefixes = [[], [A], [B, A, C]]
    found = search(decoder, [[i, 0, 0] for i in range(3)], SearchConfig(2, max_length=6), prefixes=prefixes)
    assert [list(hyps[0].tokens[: len(prefix)]) for hyps, prefix in zip(found, prefixes, strict=True)] == prefixes


@pytest.mark.parametrize(
    ("options", "prefixes", "sentence"),
    [
        ({}, [[A], [A]], "expected a prefix for each of the 1 sentences, got 2"),
        ({}, [], "expected a prefix for each of the 1 sentences, got 0"),
        ({}, [[A, 6]], "a prefix contains the token 6, the vocabulary has 6 entries"),
        ({}, [[-1]], "a prefix contains the token -1, the vocabulary has 6 entries"),
        ({}, [[A, EOS, A]], r"a prefix has tokens after its end symbol \(3\)"),
        ({"max_length": 2}, [[A, A, A]], "a prefix has 3 tokens, and max_length leaves room for 2"),
        ({"max_length": 2, "alternatives": 2}, [[A, A]], "a prefix has 2 tokens, and max_length leaves room for 1"),
        ({"suppress": (A, 6)}, None, "suppress contains the token 6, the vocabulary has 6 entries"),
        ({"suppress": (EOS,)}, None, r"suppress contains the end symbol \(3\)"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(options, prefixes, sentence):
    with pytest.raises(UsageError, match=sentence):
        search(TableDecoder(random_tables(1, 1, 6)), [SOURCE], SearchConfig(2, **options), prefixes=prefixes)


def test_alternatives_are_the_likeliest_tokens_after_the_prefix_each_completed():
    tables = table(
        {BOS: {A: 1.0}, A: {B: 0.5, C: 0.3, EOS: 0.2}, B: {EOS: 0.3, A: 0.3, C: 0.4}, C: {EOS: 1.0}}, vocabulary=7
    )
    config = SearchConfig(3, 1, 0.0, 6, alternatives=3)
    assert said(find(tables, config, [A])) == [(A, B, C), (A, C), (A,)]
    assert said(find(tables, SearchConfig(**{**vars(config), "alternatives": 9}), [A])) == [(A, B, C), (A, C), (A,)]
    assert said(find(tables, SearchConfig(**{**vars(config), "suppress": (C,)}), [A])) == [(A, B), (A,)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.integers(1, 4))
def test_each_alternative_is_the_best_that_enumeration_finds_after_its_token(problem, count):
    tables, attend, prefix, config = problem
    prefix = prefix[: config.max_length - 1]
    some = SearchConfig(**{**vars(config), "n_best": 1, "alternatives": count})
    found = find(tables, some, prefix, attend=attend)
    at, every = len(prefix), ranking(tables[0], some, prefix, attend if config.coverage_penalty else None)
    firsts = [(s[0] + (EOS,) * s[1])[at] for _, s in every]
    best = {token: score for token, (score, _) in reversed(list(zip(firsts, every, strict=True)))}
    if not best:
        assert math.isnan(found[0].score)
        return
    history = list(prefix)
    last = ([BOS, *history])[-1]

    def likelihood(token: int) -> float:
        return float(tables[0, last, token]) * (config.repetition_penalty if token in history else 1.0)

    tokens = [(h.tokens + (EOS,) * h.finished)[at] for h in found]
    # a token after which nothing can be said is an alternative that has no sentence
    assert tokens == sorted(tokens, key=likelihood, reverse=True)
    assert len(set(tokens)) == len(tokens) <= count
    assert [h.score for h in found] == pytest.approx([best[token] for token in tokens])
    if len(best) <= count and not config.no_repeat_ngram:
        assert set(tokens) == set(best)


# ---- diverse beam


@pytest.mark.parametrize(("diversity", "expected"), [(0.3, [(A,)]), (0.5, [(A,), (B,)])])
def test_a_group_keeps_away_from_the_tokens_of_those_before_it(diversity, expected):
    """log(.6) - .3 is more than log(.4), log(.6) - .5 is less. A sentence that both groups find is given once."""
    tables = table({BOS: {A: 0.6, B: 0.4}, A: {EOS: 1.0}, B: {EOS: 1.0}})
    found = find(tables, SearchConfig(2, 2, 0.0, groups=2, diversity=diversity))
    assert said(found) == expected
    assert found[-1].score == pytest.approx(math.log(0.6 if len(expected) == 1 else 0.4))


def diverse(rows: np.ndarray, config: SearchConfig) -> list[list[Sentence]]:
    """Diverse beam search as the paper writes it, in plain Python: the sentences that each group finds."""
    size = config.beam // config.groups
    beams: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())] for _ in range(config.groups)]
    ended: list[list[Sentence]] = [[] for _ in range(config.groups)]
    for _ in range(config.max_length):
        taken: list[int] = []
        for g in range(config.groups):
            if len(ended[g]) >= size:
                continue
            options = [
                (total + rows[([BOS, *tokens])[-1], token], tokens, token)
                for total, tokens in beams[g]
                for token in range(len(rows))
            ]
            options.sort(key=lambda o: -(o[0] - config.diversity * taken.count(o[2])))
            ended[g] += [(tokens, True) for _, tokens, token in options[:size] if token == EOS]
            beams[g] = [(total, (*tokens, token)) for total, tokens, token in options if token != EOS][:size]
            taken += [tokens[-1] for _, tokens in beams[g]]
    for g in range(config.groups):
        ended[g] += [(tokens, False) for _, tokens in beams[g]][: max(0, size - len(ended[g]))]
    return ended


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([(2, 1), (2, 2), (3, 1), (3, 2)]), st.sampled_from([0.2, 1.0, 50.0]))
def test_groups_find_what_the_papers_algorithm_finds(seed, shape, diversity):
    groups, size = shape
    rows = random_tables(seed, 1, 9)
    config = SearchConfig(groups * size, groups * size, 0.0, 5, groups=groups, diversity=diversity)
    expected = {sentence for group in diverse(rows[0], config) for sentence in group}
    for candidates in (None, groups * size + 1):
        found = find(rows, config, candidates=candidates)
        assert {(h.tokens, h.finished) for h in found} <= expected
        assert len(found) == min(len(expected), config.n_best)
        assert [h.score for h in found if h.finished] == sorted((h.score for h in found if h.finished), reverse=True)


# ---- what is read from the runtime


@pytest.mark.parametrize("seed", range(8))
def test_equals_come_in_the_vocabularys_order_from_whole_rows_too(seed):
    rows = np.log(np.random.default_rng(seed).dirichlet(np.ones(40), 40))[None]
    rows[:, :, [11, 23, 37]] = -0.5
    rows[:, :, [PAD, UNK, BOS]] = -np.inf
    plain, constrained = (find(rows, SearchConfig(9, 9, max_length=5, suppress=tokens)) for tokens in ((), (1,)))
    assert plain == constrained


@pytest.mark.parametrize(
    ("options", "prefix", "whole"),
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
def test_whole_rows_are_read_only_where_an_option_needs_them(options, prefix, whole):
    decoder = TableDecoder(random_tables(3, 1, 8))
    search(decoder, [SOURCE], SearchConfig(**options, max_length=4), prefixes=[prefix])
    assert ("log_probs" in decoder.read) == whole
    assert "alignment" not in decoder.read
    if not whole:
        assert decoder.read == {"candidates", "candidate_ids"}
