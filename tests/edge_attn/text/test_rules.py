"""Rules of a text are applied by each kind of tokenizer, and are part of the model's files."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attn.config.training import TextConfig
from edge_attn.errors import InputError
from edge_attn.registry import TOKENIZERS
from edge_attn.text.pipeline import Text
from edge_attn.text.rules import TextRules
from edge_attn.text.tokenizers import UNK

PAIRS = [
    ("Un th\u00e9 glac\u00e9 !", "Ein T\u00fcr"),
    ("le the", "im Tor"),
    ("Les \u00e9t\u00e9s", "Gr\u00f6\u00dfe"),
] * 3
CANONICAL = [("\u00e9", "e\u0301"), ("\u00c5", "\u212b"), ("\u1e69", "s\u0307\u0323"), ("\uac00", "\u1100\u1161")]


def loaded(**options: object) -> Text:
    """Return a model's text processing as it is read from its files."""
    text = Text.train(TextConfig(source_size=300, target_size=300, **options), PAIRS)
    files = text.files()
    again = Text.load(files.__getitem__)
    assert again.files() == files
    return again


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_canonically_equivalent_texts_have_the_same_ids(kind):
    text = loaded(kind=kind)
    for side, tokenizer in ((0, text.source), (1, text.target)):
        for pair in PAIRS:
            decomposed = unicodedata.normalize("NFD", pair[side])
            assert decomposed != pair[side] or pair[side].isascii()
            assert tokenizer.encode(decomposed) == tokenizer.encode(pair[side])
            assert UNK not in tokenizer.encode(decomposed)
            assert tokenizer.decode(tokenizer.encode(decomposed)) == pair[side]


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_decomposed_training_text_has_composed_entries(kind):
    decomposed = [(unicodedata.normalize("NFD", source), target) for source, target in PAIRS]
    assert Text.train(TextConfig(kind), decomposed).files() == Text.train(TextConfig(kind), PAIRS).files()


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_models_without_a_rule_normalize_nothing(kind):
    files = loaded(kind=kind, normalization="none").files()
    assert json.loads(files["text/text.json"]) == {"kind": kind}  # the files of 0.1.0
    text = Text.load(files.__getitem__)
    composed, decomposed = text.source.encode("th\u00e9"), text.source.encode("the\u0301")
    assert UNK not in composed
    assert UNK in decomposed


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_lower_case_is_read_and_written(kind):
    text = loaded(kind=kind, case="lower", user_symbols=("\u00c4",))
    for source, target in PAIRS:
        assert text.encode_source(source.upper()) == text.encode_source(source) == text.encode_source(source.lower())
        assert text.target.decode(text.target.encode(target.lower())) == target.lower()
    assert UNK not in text.source.encode("\u00c4")  # the rule applies to user symbols too


@pytest.mark.parametrize(
    ("normalization", "equal"),
    [
        ("nmt_nfkc", ["\uff34"]),
        ("nfkc", ["\uff34"]),
        ("nmt_nfkc_cf", ["\uff34", "t"]),
        ("nfkc_cf", ["\uff34", "t"]),
        ("identity", []),
    ],
)
def test_sentencepiece_has_the_configured_normalization(normalization, equal):
    text = loaded(normalization=normalization)
    for other in ("\uff34", "t"):
        assert (text.target.encode(f"{other}or") == text.target.encode("Tor")) == (other in equal), other


def test_words_of_a_model_with_nfkc_are_compatible():
    text = loaded(kind="words", normalization="nfkc")
    assert text.target.encode("\uff34or") == text.target.encode("Tor")


@pytest.mark.parametrize(
    ("key", "value"), [("normalization", "nfd"), ("normalization", None), ("case", "upper"), ("case", ["lower"])]
)
def test_unknown_rule_is_refused(key, value):
    files = loaded(kind="words").files()
    files["text/text.json"] = json.dumps({"kind": "words", key: value}).encode()
    with pytest.raises(InputError, match=f"text/text.json: {key} must be one of"):
        Text.load(files.__getitem__)


@given(st.text())
def test_rules_applied_twice_change_nothing_more(line):
    for normalization in ("none", "nfc", "nfkc"):
        for case in ("keep", "lower"):
            rules = TextRules(normalization, case)
            assert rules.apply(rules.apply(line)) == rules.apply(line), rules


@given(st.text())
def test_rules_map_canonically_equivalent_texts_to_one(line):
    for normalization in ("nfc", "nfkc"):
        for case in ("keep", "lower"):
            rules = TextRules(normalization, case)
            assert rules.apply(unicodedata.normalize("NFD", line)) == rules.apply(unicodedata.normalize("NFC", line))


@pytest.mark.parametrize(("composed", "decomposed"), CANONICAL)
def test_nfc_composes(composed, decomposed):
    assert TextRules("nfc").apply(decomposed) == TextRules("nfc").apply(composed)
