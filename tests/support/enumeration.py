"""The right answer of a search: all that a table can say, scored in plain Python by the meaning of each option."""

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
"""Tokens, and whether the end symbol came."""


def possible(sentence: Sentence, config: SearchConfig, prefix: Sequence[int]) -> bool:
    """Whether the options let a sentence be said."""
    tokens, finished = sentence
    free = range(len(prefix), len(tokens))
    grams = [tokens[i - config.no_repeat_ngram + 1 : i + 1] for i in range(config.no_repeat_ngram - 1, len(tokens))]
    repeated = [
        i + config.no_repeat_ngram - 1 for i, gram in enumerate(grams) if config.no_repeat_ngram and gram in grams[:i]
    ]
    always = config.suppress or config.no_repeat_ngram or config.repetition_penalty > 1.0
    whole = len(tokens) if always else max(config.min_length, len(prefix) + 1 if config.alternatives else 0)
    return (
        tokens[: len(prefix)] == tuple(prefix)
        and not any(tokens[i] in config.suppress for i in free)
        and not any(tokens[i] in (PAD, BOS) for i in free if i < whole)  # where whole rows are ranked
        and not any(i in free for i in repeated)
        and not (finished and len(tokens) < config.min_length)
    )


def worth(sentence: Sentence, rows: np.ndarray, config: SearchConfig, attend: np.ndarray | None) -> float:
    """The score of a sentence."""
    tokens, finished = sentence
    symbols = [*tokens, EOS] if finished else list(tokens)
    fed = [BOS, *tokens][: len(symbols)]
    total = 0.0
    for i, (last, symbol) in enumerate(zip(fed, symbols, strict=True)):
        total += rows[last, symbol] * (config.repetition_penalty if symbol in tokens[:i] else 1.0)
    n, alpha = len(symbols), config.length_penalty
    total /= {"none": 1.0, "avg": n**alpha, "wu": ((5 + n) / 6) ** alpha}[config.length_penalty_kind]
    for j in range(len(SOURCE) if attend is not None else 0):
        seen = sum(float(attend[last, j]) for last in fed)
        total += config.coverage_penalty * math.log(min(max(seen, UNSEEN), 1.0))
    return total


def ranking(
    rows: np.ndarray, config: SearchConfig, prefix: Sequence[int] = (), attend: np.ndarray | None = None
) -> list[tuple[float, Sentence]]:
    """Every sentence that may be said and its score, best first; those that max_length cuts off come last."""
    words = [token for token in range(len(rows)) if token != EOS]
    sizes = range(config.max_length + 1)
    every = [(tokens, True) for size in sizes[:-1] for tokens in itertools.product(words, repeat=size)]
    every += [(tokens, False) for tokens in itertools.product(words, repeat=config.max_length)]
    scored = [(worth(s, rows, config, attend), s) for s in every if possible(s, config, prefix)]
    return sorted([item for item in scored if item[0] > -np.inf], key=lambda item: (not item[1][1], -item[0]))


def whole_space(vocabulary: int, longest: int) -> int:
    return sum((vocabulary - 1) ** size for size in range(longest + 1))


@st.composite
def problems(draw):
    """A table, what it attends to, a prefix, and options whose beam is as large as the space."""
    vocabulary, longest = draw(st.sampled_from([(4, 4), (5, 3)]))
    words = [token for token in range(vocabulary) if token != EOS]
    beam = whole_space(vocabulary, longest)
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
