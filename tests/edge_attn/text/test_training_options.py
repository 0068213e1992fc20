"""Options of the tokenizers' training: coverage, bytes, digits and user symbols."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attn.config.training import TextConfig
from edge_attn.errors import InputError
from edge_attn.registry import TOKENIZERS
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import UNK

LINES = ["the cat sat on 12 mats", "a dog ran to 2012 cats", "the mat was red", "dogs and cats run at 12"] * 50
RARE = [*LINES, "It is 7:46 % \u20ac"]
BYTES = Text.train(TextConfig(source_size=400, target_size=400, byte_fallback=True), [(line, line) for line in LINES])


def trained(lines: list[str], **options: object) -> Text:
    return Text.train(TextConfig(source_size=400, target_size=400, **options), [(line, line) for line in lines])


def test_every_character_of_the_training_text_is_known():
    text = trained(RARE)
    assert UNK not in text.encode_source(RARE[-1])
    assert UNK not in text.encode_source("7,46 \u20ac".replace(",", ":"))


def test_less_coverage_leaves_out_rare_characters():
    assert UNK in trained(RARE, character_coverage=0.998).encode_source("7:46")


def test_too_many_characters_are_refused_with_the_key():
    lines = ["".join(chr(0x4E00 + i) for i in range(start, start + 50)) for start in range(0, 500, 50)]
    with pytest.raises(InputError, match="character_coverage"):
        Text.train(TextConfig(source_size=100, target_size=100), [(line, line) for line in lines])


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Cn", "Co"]), max_size=20))
def test_bytes_represent_every_character(line):
    ids = BYTES.source.encode(line)
    assert UNK not in ids
    forms = BYTES.source.surface_forms(line)
    assert len(forms) == len(ids)
    decoded = BYTES.source.decode(ids)
    assert "".join(forms).replace(" ", "") == decoded.replace(" ", "")
    assert BYTES.source.join(BYTES.source.pieces(ids)) == decoded


def test_last_byte_of_a_character_has_its_surface_form():
    assert BYTES.source.pieces(BYTES.source.encode("\u2603"))[1:] == ["<0xE2>", "<0x98>", "<0x83>"]
    assert BYTES.source.surface_forms("\u2603") == ["", "", "", "\u2603"]


def test_split_digits_are_one_piece_each():
    assert trained(LINES).source.pieces(trained(LINES).source.encode("2012")) != ["\u2581", "2", "0", "1", "2"]
    text = trained(LINES, split_digits=True)
    assert text.source.pieces(text.source.encode("2012")) == ["\u2581", "2", "0", "1", "2"]


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_user_symbols_are_entries(kind):
    symbols = ("\u20ac", '"', ",") if kind == "characters" else ("<sep>", "\u20ac", "a,b", '"')
    text = trained(LINES, kind=kind, user_symbols=symbols)
    for tokenizer in (text.source, text.target):
        entries = tokenizer.pieces(range(len(tokenizer)))
        assert all(entries.count(symbol) == 1 for symbol in symbols)
        for symbol in symbols:
            assert symbol in tokenizer.pieces(tokenizer.encode(f"cats {symbol} run"))
            assert symbol in tokenizer.decode(tokenizer.encode(f"cats {symbol} run"))


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_user_symbols_leave_the_most_frequent_entries(kind):
    text = Text.train(TextConfig(kind, 7, 7, user_symbols=("+",)), [("a a b b b c + +", "x x")])
    entries = text.source.pieces(range(4, 7))
    assert entries == (["+", "b", "a"] if kind == "words" else ["+", " ", "b"])
