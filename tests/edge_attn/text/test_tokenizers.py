"""Tokenizers of each kind convert text to ids and back, and refuse damaged vocabularies."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attn.config.training import TextConfig
from edge_attn.errors import InputError
from edge_attn.registry import TOKENIZERS, resolve
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import (
    BOS,
    EOS,
    PAD,
    SPECIAL,
    UNK,
    CharacterTokenizer,
    SentencePieceTokenizer,
    WordTokenizer,
)

LINES = ["the cat sat on the mat", "a dog ran to the cat", "the mat was red", "dogs and cats run"] * 3
PAIRS = [(line, line[::-1]) for line in LINES]
TRAINED = [resolve("tokenizer", TOKENIZERS, kind).train(LINES, 60, TextConfig(kind)) for kind in sorted(TOKENIZERS)]


@pytest.fixture(params=sorted(TOKENIZERS))
def text(request) -> Text:
    return Text.train(TextConfig(request.param, 60, 60), PAIRS)


def test_training_text_is_encoded_and_decoded(text):
    for source, target in PAIRS:
        ids = text.encode_source(source)
        assert ids[-1] == EOS
        assert text.source.decode(ids[:-1]) == source
        assert text.target.decode(text.target.encode(target)) == target
        assert not {PAD, UNK, BOS, EOS} & {*ids[:-1], *text.target.encode(target)}


def test_special_entries_have_the_first_four_ids(text):
    assert (PAD, UNK, BOS, EOS) == (0, 1, 2, 3)
    for side in (text.source, text.target):
        assert tuple(side.pieces(range(4))) == SPECIAL


def test_unknown_character_is_unk(text):
    assert UNK in text.source.encode("☃")
    assert all(i < len(text.source) for i in text.source.encode("the ☃ sat"))


def test_special_name_in_the_text_is_not_special(text):
    assert not {PAD, BOS, EOS} & set(text.source.encode("<pad> <s> </s>"))


def test_text_is_loaded_from_its_files(text):
    files = text.files()
    again = Text.load(files.__getitem__)
    assert again.kind == text.kind
    assert again.files() == files
    assert (len(again.source), len(again.target)) == (len(text.source), len(text.target))
    assert all(again.encode_source(line) == text.encode_source(line) for line in [*LINES, "", "☃ the"])


def test_training_is_deterministic(text):
    assert Text.train(TextConfig(text.kind, 60, 60), PAIRS).files() == text.files()


def test_vocabulary_size_is_limited():
    for kind in ("words", "characters"):
        tokenizer = resolve("tokenizer", TOKENIZERS, kind).train(LINES, 7, TextConfig(kind))
        assert len(tokenizer) == 7
        assert len(tokenizer.encode("the cat")) > 0
    assert WordTokenizer.train(["b b a", "c a b"], 6, TextConfig("words")).pieces([4, 5]) == [
        "b",
        "a",
    ]  # the most frequent entries


def test_too_large_sentencepiece_vocabulary_is_reduced():
    assert 4 < len(SentencePieceTokenizer.train(LINES, 4000, TextConfig())) < 400


@pytest.mark.parametrize(
    ("lines", "size", "message"),
    [
        (["the quick brown fox jumps over the lazy dog"], 10, "of 10 entries .*: Vocabulary size is smaller"),
        ([], 100, "the text is empty"),
        (["", "  "], 100, "the text is empty"),
    ],
)
def test_too_small_text_or_vocabulary_is_an_input_error(lines, size, message):
    with pytest.raises(InputError, match=message) as caught:
        SentencePieceTokenizer.train(lines, size, TextConfig())
    assert "src/" not in str(caught.value)


ENTRIES = [*SPECIAL, "a", "b"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["<unk>", "<pad>", "<s>", "</s>", "a"], "must list <pad>, <unk>, <s>, </s> first"),
        (["<pad>", "<unk>"], "must list"),
        ([*ENTRIES, "a"], "no entry twice"),
        ([*ENTRIES, "<pad>"], "no entry twice"),
        ([*ENTRIES, 3], "must be a JSON list of strings"),
        ({"a": 1}, "must be a JSON list of strings"),
    ],
)
def test_damaged_list_is_refused(entries, message):
    with pytest.raises(InputError, match=f"text/source.json.*{message}"):
        WordTokenizer.from_bytes(json.dumps(entries).encode(), "text/source.json")


@pytest.mark.parametrize("data", [b"", b"[", b'["\xff"]', b"[" * 100_000])
def test_list_that_is_not_json_is_refused(data):
    with pytest.raises(InputError, match=r"text/source\.json is not JSON"):
        CharacterTokenizer.from_bytes(data, "text/source.json")


def test_damaged_sentencepiece_model_is_refused(capfd):
    whole = SentencePieceTokenizer.train(LINES, 60, TextConfig()).to_bytes()
    for data in (b"", b"garbage" * 10, whole[: len(whole) // 2]):
        with pytest.raises(InputError, match=r"text/source\.model is not a SentencePiece model"):
            SentencePieceTokenizer.from_bytes(data, "text/source.model")
    capfd.readouterr()


def test_sentencepiece_model_with_other_special_ids_is_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=str(tmp_path / "m"), vocab_size=40, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"\(pad, unk, bos, eos\) = \(-1, 0, 1, 2\), expected \(0, 1, 2, 3\)"):
        SentencePieceTokenizer.from_bytes((tmp_path / "m.model").read_bytes(), "text/source.model")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"kind": "bytes"}', b'{"kind": ["words"]}', b'{"kind": null}', b"\xff"]
)
def test_text_without_a_known_kind_is_refused(content):
    with pytest.raises(InputError, match=r"text/text\.json"):
        Text.load({"text/text.json": content}.__getitem__)


def test_text_loads_without_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from edge_attn.config.training import TextConfig\n"
        "from edge_attn.text.pipeline import Text\n"
        "for kind in ('words', 'characters', 'sentencepiece'):\n"
        "    text = Text.train(TextConfig(kind, 30, 30), [('a b c', 'c b a')] * 4)\n"
        "    again = Text.load(text.files().__getitem__)\n"
        "    print(again.target.decode(again.target.encode('c b a')))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "c b a\n" * 3, result.stderr


CHARACTERS = st.text(st.characters(exclude_categories=["Cs"]))  # all that UTF-8 encodes


@given(st.lists(CHARACTERS, min_size=1))
def test_characters_are_decoded_exactly(lines):
    tokenizer = CharacterTokenizer.train(lines, 10**6, TextConfig("characters", normalization="none"))
    again = CharacterTokenizer.from_bytes(tokenizer.to_bytes(), "the vocabulary")
    for line in lines:
        assert again.decode(again.encode(line)) == line


@given(st.lists(CHARACTERS, min_size=1))
def test_words_are_decoded_with_single_spaces(lines):
    tokenizer = WordTokenizer.train(lines, 10**6, TextConfig("words", normalization="none"))
    again = WordTokenizer.from_bytes(tokenizer.to_bytes(), "the vocabulary")
    for line in lines:
        words = line.split()
        ids = again.encode(line)
        assert [i == UNK for i in ids] == [word in SPECIAL for word in words]
        assert again.decode(ids) == " ".join("<unk>" if word in SPECIAL else word for word in words)


@pytest.mark.parametrize(
    ("kind", "sentence", "surface_forms"),
    [
        ("words", " the  caT\tsat ", ["the", "caT", "sat"]),
        ("characters", "a ☃", ["a", " ", "☃"]),
    ],
)
def test_surface_forms_are_parts_of_the_text(kind, sentence, surface_forms):
    tokenizer = resolve("tokenizer", TOKENIZERS, kind).train(LINES, 60, TextConfig(kind))
    assert tokenizer.surface_forms(sentence) == surface_forms
    assert len(tokenizer.encode(sentence)) == len(surface_forms)


def test_consecutive_unknown_characters_are_one_surface_form():
    tokenizer = SentencePieceTokenizer.train(LINES, 60, TextConfig())
    sentence = "the ☃☺ cat☃"
    surface_forms, ids = tokenizer.surface_forms(sentence), tokenizer.encode(sentence)
    assert [form for form, i in zip(surface_forms, ids, strict=True) if i == UNK] == ["☃☺", "☃"]
    assert "".join(surface_forms) == sentence.replace(" ", "")
    assert not any("▁" in form for form in surface_forms)


def test_joined_pieces_equal_decoded_ids(text):
    ids = text.target.encode(LINES[0])
    pieces = text.target.pieces(ids)
    assert text.target.join(pieces) == text.target.decode(ids)
    assert text.target.join([]) == ""
    assert text.target.join([*pieces, "☃"]).endswith("☃")


@given(st.text())
def test_every_id_has_a_surface_form(line):
    for tokenizer in TRAINED:
        assert len(tokenizer.surface_forms(line)) == len(tokenizer.encode(line))
