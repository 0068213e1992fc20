"""Digests of text processing: every entry of a vocabulary, and lines of entries.

A device that encodes or decodes one of them differently has another tokenizer than the reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from edge_attn.parity.probes import shuffled
from edge_attn.text.tokenizers import Tokenizer

LINES = 1000
"""Number of lines of entries."""
CHUNK = 100
"""Entries or lines of one digest, which is as near as a difference can be named."""
LETTERS = [chr(code) for code in (*range(0x41, 0x7B), *range(0xC0, 0x180), *range(0x391, 0x450))]
"""Letters whose case and decomposition are the same in every version of Unicode that Python has."""
UPPER = {ord(letter): letter.upper() for letter in LETTERS if len(letter.upper()) == 1}
LOWER = {ord(letter): letter.lower() for letter in LETTERS if len(letter.lower()) == 1}
WIDE = {code: chr(code + 0xFEE0) for code in range(0x21, 0x7F)}
"""Full-width forms, which NFKC maps to ASCII."""
DECOMPOSED = {0xE9: "e\u0301", 0xE8: "e\u0300", 0xEA: "e\u0302", 0xE0: "a\u0300", 0xE7: "c\u0327", 0xF1: "n\u0303"}
"""Letters with their accents apart, which NFC and NFKC compose."""


def text_digests(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return digests of the entries in chunks, then of the lines in chunks."""
    items = [*_entries(tokenizer), *_encoded_lines(tokenizer)]
    count = len(tokenizer)
    starts = (*range(0, count, CHUNK), *range(count, len(items), CHUNK))
    ends = (*starts[1:], len(items))
    return tuple(
        hashlib.sha256("\n".join(items[start:end]).encode(errors="surrogatepass")).hexdigest()[:16]
        for start, end in zip(starts, ends, strict=True)
    )


def differing(tokenizer: Tokenizer, digests: Sequence[str]) -> list[str]:
    """Return the names of the chunks whose digests are not the recorded ones: `entries 100 to 199`."""
    count, actual = len(tokenizer), text_digests(tokenizer)
    if len(actual) != len(digests):
        return [f"the number of entries, {count}"]
    entries = [f"entries {start} to {min(start + CHUNK, count) - 1}" for start in range(0, count, CHUNK)]
    lines = [f"lines {start} to {start + CHUNK - 1} of entries" for start in range(0, LINES, CHUNK)]
    names = [*entries, *lines]
    return [name for name, now, then in zip(names, actual, digests, strict=True) if now != then]


def _entries(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield what the tokenizer does with each entry."""
    for i, description in enumerate(tokenizer.entries()):
        (piece,), text = tokenizer.pieces([i]), tokenizer.decode([i])
        yield f"{description!a} {text!a} {tokenizer.encode(piece)} {tokenizer.encode(text)}"


def _encoded_lines(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the ids of each line, and the text of these ids."""
    for line in _lines(tokenizer):
        ids = tokenizer.encode(line)
        yield f"{ids} {tokenizer.decode(ids)!a}"


def _lines(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield lines of a few entries: joined in several ways, in other cases and forms, with rare characters."""
    order = np.resize(np.concatenate([shuffled(len(tokenizer), seed) for seed in range(1, 9)]), LINES * 12)
    for i in range(LINES):
        ids = order[12 * i : 12 * i + 3 + i % 10].tolist()
        texts = [tokenizer.decode([token]) for token in ids]
        decoded = tokenizer.decode(ids)
        yield (
            decoded,
            "".join(texts),
            " ".join(texts),
            decoded.translate(UPPER),
            decoded.translate(LOWER),
            " ".join(text[:1].translate(UPPER) + text[1:] for text in texts),
            decoded.translate(DECOMPOSED),
            f"\t{decoded.translate(WIDE)}\u00a0 {texts[0]}\u200b\u2026 \ufb01 \u2460 {texts[-1]}\U0001f600 ",
        )[i % 8]
