"""Sentences of the golden data: those of the checkpoint or the user, and adversarial ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_attn.errors import ExportError
from edge_attn.progress import logger
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import UNK

MIN_SENTENCES = 64
LONGEST_SOURCE = 4096
"""Maximum length in tokens of the longest golden sentence, which a bundle of that length needs."""
HIGH_UNKNOWN = 0.1
"""Share of unknown tokens in the sentences of a file from which a warning names it."""
RARE_CHARACTERS = ("\U00013080\U00013081 \u2603", "\u16a0\u16a2\u16a6", "\ue000\ue001")


def choose_sentences(text: Text, samples: Sequence[str], max_source: int) -> list[str]:
    """Choose at least MIN_SENTENCES sentences of mixed length.

    Among them are one of a single token, one of `max_source` tokens, and one with unknown characters.

    Raises:
        ExportError: there is no sentence, or too few to derive MIN_SENTENCES from.
    """
    distinct = [s for s in dict.fromkeys(sample.strip() for sample in samples) if s and len(text.encode_source(s)) > 1]
    if not distinct:
        raise ExportError("there is no sentence for the golden data; pass a file of source sentences with --input")
    ordered = sorted(distinct, key=lambda s: (len(text.encode_source(s)), s))
    count = min(len(ordered), MIN_SENTENCES)
    mixed = [ordered[round(i * (len(ordered) - 1) / max(count - 1, 1))] for i in range(count)]
    longest = _longest(text, ordered, max_source)
    extra = [*_fragments([*reversed(ordered), longest], MIN_SENTENCES - count), _one_token(text, ordered), longest]
    chosen = list(dict.fromkeys([*mixed, *extra, _with_unknown(text, ordered[0])]))
    if len(chosen) < MIN_SENTENCES:
        raise ExportError(
            f"the sentences yield only {len(chosen)} for the golden data, which needs {MIN_SENTENCES}; "
            f"pass a file of at least {MIN_SENTENCES} with --input"
        )
    return chosen


def warn_of_odd_lines(path: Path, lines: Sequence[str], text: Text) -> None:
    """Log a warning if lines of a file have tabs, or many tokens that the source vocabulary lacks."""
    tabs = sum("\t" in line for line in lines)
    if tabs:
        logger.warning("%s: %d of %d lines have a tab; expected source sentences, not pairs", path, tabs, len(lines))
    tokens = [token for line in lines for token in text.source.encode(line)]
    unknown = tokens.count(UNK)
    if unknown > HIGH_UNKNOWN * len(tokens):
        logger.warning(
            "%s: %d of %d tokens are unknown to the model; expected sentences in the language of its source",
            *(path, unknown, len(tokens)),
        )


def _fragments(sentences: Sequence[str], count: int) -> list[str]:
    """Return up to `count` substrings: those from the first character on, then from the second, and so on."""
    fragments: dict[str, None] = {}
    for start in range(max(map(len, sentences))):
        for sentence in sentences:
            for end in range(len(sentence), start, -1):
                if len(fragments) >= count:
                    return list(fragments)
                fragment = sentence[start:end].strip()
                if fragment and fragment not in sentences:
                    fragments[fragment] = None
    return list(fragments)


def _one_token(text: Text, sentences: Sequence[str]) -> str:
    """Return a word or character that is one token and the end symbol."""
    parts: dict[str, None] = dict.fromkeys(part for sentence in sentences for part in (*sentence.split(), *sentence))
    for part in parts:
        if part.strip() and len(text.encode_source(part)) == 2:
            return part
    raise ExportError("no word or character of the golden sentences is a single token; pass others with --input")


def _longest(text: Text, sentences: Sequence[str], max_source: int) -> str:
    """Join sentences, the longest first, until their encoding reaches `max_source` tokens or is truncated there.

    Raises:
        ExportError: `max_source` is too large, or the encoding stops to grow, as that of unknown characters does.
    """
    if max_source > LONGEST_SOURCE:
        raise ExportError(
            f"data.max_tokens = {max_source} is the longest source of the bundle, which the golden data contains, "
            f"expected at most {LONGEST_SOURCE}; train with a smaller one"
        )
    separator: str = " " if text.kind != "characters" else ""
    joined: str = sentences[-1]
    index, length, ungrown = 0, len(text.encode_source(joined)), 0
    while length < max_source:
        joined += separator + sentences[-1 - index % len(sentences)]
        index, before, length = index + 1, length, len(text.encode_source(joined))
        ungrown = 0 if length > before else ungrown + 1
        if ungrown == len(sentences):
            raise ExportError(
                f"the sentences joined have {length} tokens and no more, and the golden data needs one of "
                f"{max_source}; pass other sentences with --input"
            )
    return joined


def _with_unknown(text: Text, sentence: str) -> str:
    """Return `sentence` with characters outside the vocabulary, or at least with rare ones."""
    extended = [f"{sentence} {characters}" for characters in RARE_CHARACTERS]
    return next((candidate for candidate in extended if UNK in text.encode_source(candidate)), extended[0])
