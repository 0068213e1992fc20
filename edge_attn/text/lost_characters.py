"""Characters of the training text that a vocabulary lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from edge_attn.progress import logger
from edge_attn.text.tokenizers import UNK, Tokenizer

NAMED = 20
"""Maximum number of characters that the warning names."""


def lost_characters(tokenizer: Tokenizer, lines: Iterable[str]) -> Counter[str]:
    """Return the number of occurrences of each character of the lines that the tokenizer reads as unknown."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(tokenizer.rules.apply(line))
    return Counter({character: n for character, n in counts.items() if UNK in tokenizer.encode(character)})


def warn_of_lost_characters(side: str, tokenizer: Tokenizer, lines: Iterable[str], advice: str) -> None:
    """Log a warning that names the characters which a vocabulary lacks, the most frequent first.

    Args:
        side: `source` or `target`.
        tokenizer: the trained tokenizer.
        lines: the sentences that it was trained on.
        advice: the options that keep them.
    """
    lost = lost_characters(tokenizer, lines)
    if not lost:
        return
    ordered = sorted(lost.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{_printable(character)} {n}" for character, n in ordered[:NAMED])
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    logger.warning(
        "the %s vocabulary lacks %d characters of the training text, which occur %d times: %s%s; %s keeps them",
        *(side, len(lost), sum(lost.values()), named, more, advice),
    )


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
