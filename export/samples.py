"""The sentences of the golden data: those of the checkpoint or of the user, and the adversarial ones."""

from __future__ import annotations

from collections.abc import Sequence

from edge_attn.errors import ExportError
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import UNK

LEAST = 64
STRANGE = ("\U00013080\U00013081 \u2603", "\u16a0\u16a2\u16a6", "\ue000\ue001")


def choose(text: Text, samples: Sequence[str], max_source: int) -> list[str]:
    """At least LEAST sentences of mixed length: one of one token, one of `max_source`, one with unknown characters.

    Raises:
        ExportError: no sentence was given, or too few to make that many of.
    """
    distinct = [s for s in dict.fromkeys(sample.strip() for sample in samples) if s and len(text.encode_source(s)) > 1]
    if not distinct:
        raise ExportError("no sentence was given for the golden data; give a file of source sentences with --input")
    ordered = sorted(distinct, key=lambda s: (len(text.encode_source(s)), s))
    count = min(len(ordered), LEAST)
    mixed = [ordered[round(i * (len(ordered) - 1) / max(count - 1, 1))] for i in range(count)]
    longest = _longest(text, ordered, max_source)
    extra = [*_parts([*reversed(ordered), longest], LEAST - count), _one_token(text, ordered), longest]
    chosen = list(dict.fromkeys([*mixed, *extra, _unknown(text, ordered[0])]))
    if len(chosen) < LEAST:
        raise ExportError(
            f"only {len(chosen)} sentences for the golden data could be made of those given; "
            f"give a file of at least {LEAST} with --input"
        )
    return chosen


def _parts(sentences: Sequence[str], wanted: int) -> list[str]:
    """Beginnings of the sentences, then of what their first character leaves, and so on."""
    made: dict[str, None] = {}
    for start in range(max(map(len, sentences))):
        for sentence in sentences:
            for end in range(len(sentence), start, -1):
                if len(made) >= wanted:
                    return list(made)
                part = sentence[start:end].strip()
                if part and part not in sentences:
                    made[part] = None
    return list(made)


def _one_token(text: Text, sentences: Sequence[str]) -> str:
    """The shortest text that is one token and the end symbol."""
    tried = dict.fromkeys(part for sentence in sentences for part in (*sentence.split(), *sentence))
    found: str | None = next((part for part in tried if part.strip() and len(text.encode_source(part)) == 2), None)
    if found is None:
        raise ExportError("no word or character of the golden sentences is a single token")
    return found


def _longest(text: Text, sentences: Sequence[str], max_source: int) -> str:
    """Sentences one after another until exactly the longest source is reached, or cut there."""
    joint: str = " " if text.kind != "characters" else ""
    made: str = sentences[-1]
    index = 0
    while len(text.encode_source(made)) < max_source:
        made += joint + sentences[-1 - index % len(sentences)]
        index += 1
    return made


def _unknown(text: Text, sentence: str) -> str:
    """A sentence with something that the vocabulary does not know, or that is at least strange to it."""
    made = [f"{sentence} {strange}" for strange in STRANGE]
    return next((strange for strange in made if UNK in text.encode_source(strange)), made[0])
