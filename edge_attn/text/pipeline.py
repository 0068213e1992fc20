"""Text of a model: a tokenizer for each side, and encoding with truncation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_attn.errors import InputError
from edge_attn.registry import TOKENIZERS, resolve
from edge_attn.text.tokenizers import EOS, Tokenizer


@dataclass(frozen=True)
class Text:
    """Both sides of a model's text."""

    kind: str
    source: Tokenizer
    target: Tokenizer

    @classmethod
    def train(cls, kind: str, pairs: Sequence[tuple[str, str]], source_size: int, target_size: int) -> Text:
        tokenizer = resolve("tokenizer", TOKENIZERS, kind)
        source = tokenizer.train((pair[0] for pair in pairs), source_size)
        return cls(kind, source, tokenizer.train((pair[1] for pair in pairs), target_size))

    @classmethod
    def load(cls, read: Callable[[str], bytes]) -> Text:
        """The text whose files `read` gives by their names, as `files` named them."""
        try:
            kind = json.loads(read("text/text.json"))["kind"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"text/text.json does not name a kind of tokenizer: {error}") from error
        if not isinstance(kind, str) or kind not in TOKENIZERS:
            raise InputError(f"text/text.json names the tokenizer {kind!r}; known: {', '.join(sorted(TOKENIZERS))}")
        tokenizer = resolve("tokenizer", TOKENIZERS, kind)
        sides = {}
        for side in ("source", "target"):
            name = f"text/{side}{tokenizer.suffix}"
            sides[side] = tokenizer.from_bytes(read(name), name)
        return cls(kind, **sides)

    def files(self) -> dict[str, bytes]:
        """Every file of this text by its name in a bundle or checkpoint."""
        return {
            "text/text.json": (json.dumps({"kind": self.kind}, sort_keys=True) + "\n").encode(),
            f"text/source{self.source.suffix}": self.source.to_bytes(),
            f"text/target{self.target.suffix}": self.target.to_bytes(),
        }

    def encode_source(self, text: str) -> list[int]:
        return [*self.source.encode(text), EOS]


def encode_truncated(text: Text, sentence: str, max_source: int) -> tuple[list[int], bool]:
    """The source ids of a sentence, and whether it was cut to `max_source`."""
    ids = text.encode_source(sentence)
    if len(ids) <= max_source:
        return ids, False
    return [*ids[: max_source - 1], EOS], True
