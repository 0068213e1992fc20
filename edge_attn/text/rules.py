"""Rules that a tokenizer applies to each text before it encodes it. They are part of a model, in `text/text.json`."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from edge_attn.errors import InputError

NORMALIZATIONS = ("none", "nfc", "nfkc")
CASES = ("keep", "lower")


@dataclass(frozen=True)
class TextRules:
    """Case and Unicode normalization of a text. SentencePiece models have their own normalization, and "none" here."""

    normalization: str = "none"
    """Unicode normal form, one of NORMALIZATIONS. Models of 0.1.0 have none."""
    case: str = "keep"
    """One of CASES."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TextRules:
        """Read the rules from the content of `text/text.json`, which may lack each of them.

        Raises:
            InputError: an unknown rule, which a later version has.
        """
        rules = cls(content.get("normalization", "none"), content.get("case", "keep"))
        for key, value, known in (("normalization", rules.normalization, NORMALIZATIONS), ("case", rules.case, CASES)):
            if value not in known:
                raise InputError(f"text/text.json: {key} must be one of {', '.join(known)}, got {value!r}")
        return rules

    def to_json(self) -> dict[str, str]:
        """Return the rules that change a text, for `text/text.json`."""
        default = TextRules()
        content = {"normalization": self.normalization, "case": self.case}
        return {key: value for key, value in content.items() if value != getattr(default, key)}

    def apply(self, text: str) -> str:
        """Return the text in the case and the normal form of the model."""
        text = self._normalize(text)  # first, because a compatibility form of a letter has no lower case of its own
        return self._normalize(text.lower()) if self.case == "lower" else text

    def _normalize(self, text: str) -> str:
        if self.normalization == "none":
            return text
        return unicodedata.normalize(cast(Literal["NFC", "NFKC"], self.normalization.upper()), text)
