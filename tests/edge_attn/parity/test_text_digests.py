"""Tests of digests of text processing: each change of a vocabulary or of a rule shows, with its place."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from edge_attn.config.training import TextConfig
from edge_attn.parity.text_digests import CHUNK, LINES, differing, text_digests
from edge_attn.text.pipeline import Text
from edge_attn.text.rules import TextRules
from edge_attn.text.tokenizers import SPECIAL, SentencePieceTokenizer, WordTokenizer

WORDS = [*SPECIAL, *(f"{a}{b}{c}" for a, b, c in itertools.product("aeiou", "bcdfgh", "lmnr"))]


def pieces_model() -> SentencePieceTokenizer:
    lines = [f"{a} {b}{a} Été {b}" for a, b in itertools.product(WORDS[4:34], WORDS[40:70])]
    config = TextConfig(kind="sentencepiece", byte_fallback=True, user_symbols=("<x>",), source_size=420)
    text = Text.train(config, [(line, line) for line in lines])
    assert isinstance(text.source, SentencePieceTokenizer)
    return text.source


def test_equal_tokenizers_have_equal_digests():
    tokenizer = WordTokenizer(WORDS)
    digests = text_digests(tokenizer)
    assert len(digests) == -(-len(WORDS) // CHUNK) + LINES // CHUNK
    assert differing(WordTokenizer(WORDS), digests) == []


def test_swapped_words_are_named():
    swapped = [*WORDS[:110], WORDS[111], WORDS[110], *WORDS[112:]]
    names = differing(WordTokenizer(swapped), text_digests(WordTokenizer(WORDS)))
    assert names[0] == f"entries 100 to {len(WORDS) - 1}"
    assert any(name.startswith("lines") for name in names)


@pytest.mark.parametrize("rules", [TextRules(case="lower"), TextRules(normalization="nfkc")])
def test_another_rule_differs(rules):
    words = [*WORDS, "\u00e9t\u00e9", "Abc"]
    assert differing(WordTokenizer(words, rules=rules), text_digests(WordTokenizer(words)))


def test_another_size_is_named():
    assert differing(WordTokenizer(WORDS[:100]), text_digests(WordTokenizer(WORDS))) == ["the number of entries, 100"]


CHANGES: dict[str, Any] = {
    "score": lambda pieces: setattr(pieces[-3], "score", pieces[-3].score - 0.01),
    "unused": lambda pieces: setattr(pieces[-3], "type", 5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_a_piece_differs(change):
    sentencepiece_model_pb2 = pytest.importorskip(
        "sentencepiece.sentencepiece_model_pb2", reason="protobuf is not installed"
    )
    tokenizer = pieces_model()
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer.to_bytes())
    CHANGES[change](model.pieces)
    changed = SentencePieceTokenizer(model.SerializeToString(), "changed")
    assert differing(tokenizer, text_digests(tokenizer)) == []
    assert differing(changed, text_digests(tokenizer))[0].startswith("entries")
