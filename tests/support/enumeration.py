"""Exhaustive search: every sentence of a table, scored in plain Python by the definition of each option."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from table_decoder import SOURCE, random_tables

from edge_attn.decoding.options import SearchConfig
from edge_attn.decoding.scores import UNSEEN
from edge_attn.text.tokenizers import BOS, EOS, PAD

Sentence = tuple[tuple[int, ...], bool]
"""Tokens, and True if the end symbol follows."""


def is_allowed(sentence: Sentence, config: SearchConfig, prefix: Sequence[int]) -> bool:
    """Return True if the options allow a sentence."""
    tokens, finished = sentence
    free = range(len(prefix), len(tokens))
    grams = [tokens[i - config.no_repeat_ngram + 1 : i + 1] for i in range(config.no_repeat_ngram - 1, len(tokens))]
    repeated = [
        i + config.no_repeat_ngram - 1 for i, gram in enumerate(grams) if config.no_repeat_ngram and gram in grams[:i]
    ]
    every_row = config.suppress or config.no_repeat_ngram or config.repetition_penalty > 1.0
    ranked = len(tokens) if every_row else max(config.min_length, len(prefix) + 1 if config.alternatives else 0)
    return (
        tokens[: len(prefix)] == tuple(prefix)
        and not any(tokens[i] in config.suppress for i in free)
        and not any(tokens[i] in (PAD, BOS) for i in free if i < ranked)  # whole rows are ranked there
        and not any(i in free for i in repeated)
        and not (finished and len(tokens) < config.min_length)
    )


def score(sentence: Sentence, rows: np.ndarray, config: SearchConfig, attend: np.ndarray | None) -> float:
    """Return the score of a sentence."""
    tokens, finished = sentence
    symbols = [*tokens, EOS] if finished else list(tokens)
    inputs = [BOS, *tokens][: len(symbols)]
    total = 0.0
    for i, (last, symbol) in enumerate(zip(inputs, symbols, strict=True)):
        total += rows[last, symbol] * (config.repetition_penalty if symbol in tokens[:i] else 1.0)
    n, alpha = len(symbols), config.length_penalty
    total /= {"none": 1.0, "avg": n**alpha, "wu": ((5 + n) / 6) ** alpha}[config.length_penalty_kind]
    for j in range(len(SOURCE) if attend is not None else 0):
        coverage = sum(float(attend[last, j]) for last in inputs)
        total += config.coverage_penalty * math.log(min(max(coverage, UNSEEN), 1.0))
    return total


def ranking(
    rows: np.ndarray, config: SearchConfig, prefix: Sequence[int] = (), attend: np.ndarray | None = None
) -> list[tuple[float, Sentence]]:
    """Return each allowed sentence with its score, best first; those truncated at max_length come last."""
    words = [token for token in range(len(rows)) if token != EOS]
    sizes = range(config.max_length + 1)
    sentences = [(tokens, True) for size in sizes[:-1] for tokens in itertools.product(words, repeat=size)]
    sentences += [(tokens, False) for tokens in itertools.product(words, repeat=config.max_length)]
    scored = [(score(s, rows, config, attend), s) for s in sentences if is_allowed(s, config, prefix)]
    return sorted([item for item in scored if item[0] > -np.inf], key=lambda item: (not item[1][1], -item[0]))


def space_size(vocabulary: int, longest: int) -> int:
    return sum((vocabulary - 1) ** size for size in range(longest + 1))


@st.composite
def problems(draw):
    """Draw a table, its alignments, a prefix, and options whose beam is as large as the space."""
    vocabulary, longest = draw(st.sampled_from([(4, 4), (5, 3)]))
    words = [token for token in range(vocabulary) if token != EOS]
    beam = space_size(vocabulary, longest)
    kind = draw(st.sampled_from(["none", "avg", "wu"]))
    config = SearchConfig(
        beam,
        beam,
        length_penalty=1.0 if kind == "none" else draw(st.sampled_from([0.0, 0.6, 1.0, 2.0])),
        max_length=longest,
        length_penalty_kind=kind,
        coverage_penalty=draw(st.sampled_from([0.0, 0.4])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.7])),
        no_repeat_ngram=draw(st.integers(0, 3)),
        min_length=draw(st.integers(0, longest)),
        suppress=tuple(draw(st.sets(st.sampled_from(words), max_size=2))),
    )
    seed = draw(st.integers(0, 10**6))
    attend = np.random.default_rng(seed).dirichlet([0.5] * len(SOURCE), vocabulary)
    prefix = draw(st.lists(st.sampled_from(words), max_size=longest))
    return random_tables(seed, 1, vocabulary), attend, prefix, config
