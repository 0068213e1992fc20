"""Text processing of a model: a tokenizer for each side, and source encoding with truncation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_attn.config.training import TextConfig
from edge_attn.errors import InputError
from edge_attn.registry import TOKENIZERS, resolve
from edge_attn.text.lost_characters import warn_of_lost_characters
from edge_attn.text.rules import TextRules
from edge_attn.text.tokenizers import EOS, Tokenizer


@dataclass(frozen=True)
class Text:
    """Source and target tokenizers of a model, both of one kind."""

    kind: str
    """Kind of the tokenizers, a row of TOKENIZERS."""
    source: Tokenizer
    target: Tokenizer

    @classmethod
    def train(cls, config: TextConfig, pairs: Sequence[tuple[str, str]]) -> Text:
        """Train both tokenizers on (source, target) sentence pairs. Characters that they lack are logged.

        Raises:
            InputError: the sentences are too few for the vocabulary, or the vocabulary is too small.
        """
        tokenizer = resolve("tokenizer", TOKENIZERS, config.kind)
        sides = {}
        for i, (side, size) in enumerate((("source", config.source_size), ("target", config.target_size))):
            sides[side] = tokenizer.train((pair[i] for pair in pairs), size, config)
            if config.kind != "words":  # whose vocabulary never has all words
                advice = "text.byte_fallback" if config.kind == "sentencepiece" else f"a larger text.{side}_size"
                if config.character_coverage < 1.0:
                    advice = f"text.character_coverage = 1.0 or {advice}"
                warn_of_lost_characters(side, sides[side], (pair[i] for pair in pairs), advice)
        return cls(config.kind, **sides)

    @classmethod
    def load(cls, read: Callable[[str], bytes]) -> Text:
        """Load both tokenizers. `read` returns the content of a file by its name in `files`.

        Raises:
            InputError: a file is damaged, or the kind of tokenizer is unknown.
        """
        try:
            content = json.loads(read("text/text.json"))
            kind = content["kind"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"text/text.json does not name a kind of tokenizer: {error}") from error
        if not isinstance(kind, str) or kind not in TOKENIZERS:
            raise InputError(f"text/text.json names the tokenizer {kind!r}; known: {', '.join(sorted(TOKENIZERS))}")
        tokenizer = resolve("tokenizer", TOKENIZERS, kind)
        rules = TextRules.from_json(content)
        sides = {}
        for side in ("source", "target"):
            name = f"text/{side}{tokenizer.suffix}"
            sides[side] = tokenizer.from_bytes(read(name), name, rules)
        return cls(kind, **sides)

    def files(self) -> dict[str, bytes]:
        """Return the content of every file of the tokenizers, by its name in a bundle or checkpoint."""
        content = {"kind": self.kind, **self.source.rules.to_json()}
        return {
            "text/text.json": (json.dumps(content, sort_keys=True) + "\n").encode(),
            f"text/source{self.source.suffix}": self.source.to_bytes(),
            f"text/target{self.target.suffix}": self.target.to_bytes(),
        }

    def encode_source(self, text: str) -> list[int]:
        """Return the source ids of a sentence, with eos."""
        return [*self.source.encode(text), EOS]


def encode_truncated(text: Text, sentence: str, max_source: int) -> tuple[list[int], bool]:
    """Return the source ids of a sentence, with eos, and whether it was truncated to `max_source` ids."""
    ids = text.encode_source(sentence)
    return truncate(ids, max_source), len(ids) > max_source


def truncate(ids: list[int], max_source: int) -> list[int]:
    """Return the ids of a source, which ends with eos, truncated to `max_source` ids with eos."""
    return ids if len(ids) <= max_source else [*ids[: max_source - 1], EOS]
