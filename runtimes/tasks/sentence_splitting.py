"""Translation of a line of several sentences: they are translated one by one, and joined as they stood.

The rules are those of sentencex (Wikimedia): marks at the end of a sentence, abbreviations and quotations by language.
It splits too little rather than too much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edge_attn.errors import MissingExtraError
from edge_attn.runtimes.tasks.translation import Translation
from edge_attn.text.tokenizers import SURROGATE


def split_sentences(text: str, language: str) -> tuple[list[str], list[str]]:
    """Return the sentences of a text without surrounding white space, and the white space between them.

    Args:
        text: the text, a line.
        language: its language, such as `en`. An unknown one has the rules of English.

    Raises:
        MissingExtraError: sentencex is not installed.
    """
    try:
        from sentencex import segment
    except ModuleNotFoundError as error:
        raise MissingExtraError("sentencex", "split") from error
    sentences: list[str] = []
    separators: list[str] = []
    between = ""
    for part in segment(language, SURROGATE.sub("\ufffd", text).strip()):
        stripped = part.strip()
        if not stripped:
            between += part
            continue
        before, _, after = part.partition(stripped)
        if sentences:
            separators.append(between + before)
        sentences.append(stripped)
        between = after
    return sentences, separators


def join_translations(parts: Sequence[Translation], separators: Sequence[str]) -> Translation:
    """Return the translation of a line from those of its sentences.

    Log-probabilities and scores are sums. The alignment of each sentence is a block; the weight of its end symbol
    becomes that of the line's.

    Args:
        parts: translations of the sentences, at least one.
        separators: text between them.
    """
    if len(parts) == 1:
        return parts[0]
    texts = [parts[0].text]
    for separator, part in zip(separators, parts[1:], strict=True):
        texts += [separator, part.text]
    end = next((part.source_tokens[-1:] for part in reversed(parts) if part.source_tokens), ())
    return Translation(
        text="".join(texts).strip(),
        score=math.fsum(part.score for part in parts),
        log_prob=math.fsum(part.log_prob for part in parts),
        tokens=tuple(token for part in parts for token in part.tokens),
        source_tokens=(*(token for part in parts for token in part.source_tokens[:-1]), *end),
        alignment=_join_alignments([part for part in parts if part.source_tokens]),
        finished=all(part.finished for part in parts),
        cut=any(part.cut for part in parts),
        source_length=sum(part.source_length for part in parts),
    )


def _join_alignments(parts: Sequence[Translation]) -> np.ndarray | None:
    """Return the weights (tokens + 1, source_tokens) of the whole line; None if a sentence has none."""
    if not parts or any(part.alignment is None for part in parts):
        return None
    rows = sum(len(part.tokens) for part in parts) + 1
    columns = sum(len(part.source_tokens) - 1 for part in parts) + 1
    joined = np.zeros((rows, columns), np.float32)
    row = column = 0
    for part in parts:
        assert part.alignment is not None
        tokens, sources = len(part.tokens), len(part.source_tokens) - 1
        block = part.alignment[: tokens + 1]
        last = len(block) if part is parts[-1] else tokens
        joined[row : row + last, column : column + sources] = block[:last, :sources]
        joined[row : row + last, -1] = block[:last, sources]
        row, column = row + tokens, column + sources
    return joined
