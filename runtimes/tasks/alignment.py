"""Word alignments from attention weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_attn.decoding.decoder import has_alignment
from edge_attn.errors import UsageError
from edge_attn.spec import Runtime


def pharaoh(alignment: np.ndarray | None, tokens: int) -> str:
    """Return `i-j` pairs: each target token j with the source token i that has its largest weight, without end symbols.

    Empty without weights or source tokens.

    Args:
        alignment: attention weights (at least `tokens`, source tokens and their end symbol).
        tokens: number of target tokens.
    """
    if alignment is None or alignment.shape[1] < 2:
        return ""
    return " ".join(f"{i}-{j}" for j, i in enumerate(alignment[:tokens, :-1].argmax(1)))


def word_pharaoh(alignment: np.ndarray | None, source: Sequence[str], target: Sequence[str]) -> str:
    """Return `i-j` pairs: each target word j with the source word i that its tokens have the largest weight of.

    The weight of a source word is the sum over its tokens, averaged over the tokens of the target word. Words are
    separated by white space in the text of the tokens, as `spaced` of a tokenizer returns it.

    Args:
        alignment: attention weights (at least target tokens, at least source tokens).
        source: text of each source token without the end symbol.
        target: text of each target token without the end symbol.
    """
    source_words, target_words = word_numbers(source), word_numbers(target)
    columns = np.array([-1 if word is None else word for word in source_words], np.int64)
    if alignment is None or (columns < 0).all():
        return ""
    weights = alignment[: len(target), : len(source)]
    by_word = np.zeros((len(target), columns.max() + 1))  # (tgt, source words)
    np.add.at(by_word.T, columns[columns >= 0], weights.T[columns >= 0])
    links = []
    for j in range(max((word for word in target_words if word is not None), default=-1) + 1):
        rows = [row for row, word in enumerate(target_words) if word == j]
        links.append(f"{by_word[rows].mean(0).argmax()}-{j}")
    return " ".join(links)


def word_numbers(texts: Sequence[str]) -> list[int | None]:
    """Return the number of the word that each token belongs to, None for white space at the end.

    White space before a word belongs to that word, as the mark `▁` of SentencePiece.
    """
    numbers: list[int | None] = []
    word, in_word, pending = -1, False, 0
    for text in texts:
        first: int | None = None
        for character in text:
            if character.isspace():
                in_word = False
                continue
            word += not in_word
            in_word = True
            first = word if first is None else first
        if first is None:
            pending += 1
            continue
        numbers += [first] * (pending + 1)
        pending = 0
    return numbers + [None] * pending


def check_attention(runtime: Runtime, feature: str) -> None:
    """Check that the model has attention weights, which `feature` reads.

    Raises:
        UsageError: it has none.
    """
    if not has_alignment(runtime.graphs):
        raise UsageError(f"{feature} needs attention weights, and this model has no attention")
