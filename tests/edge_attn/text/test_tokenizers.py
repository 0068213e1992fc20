"""Text to ids and back, for each kind of tokenizer; damaged vocabularies are refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
TRAINED = [resolve("tokenizer", TOKENIZERS, kind).train(LINES, 60) for kind in sorted(TOKENIZERS)]


@pytest.fixture(params=sorted(TOKENIZERS))
def text(request) -> Text:
    return Text.train(request.param, PAIRS, 60, 60)


def test_what_was_trained_on_comes_back(text):
    for source, target in PAIRS:
        ids = text.encode_source(source)
        assert ids[-1] == EOS
        assert text.source.decode(ids[:-1]) == source
        assert text.target.decode(text.target.encode(target)) == target
        assert not {PAD, UNK, BOS, EOS} & {*ids[:-1], *text.target.encode(target)}


def test_the_four_special_ids(text):
    assert (PAD, UNK, BOS, EOS) == (0, 1, 2, 3)
    for side in (text.source, text.target):
        assert tuple(side.pieces(range(4))) == SPECIAL


def test_an_unknown_character_is_unk(text):
    assert UNK in text.source.encode("☃")
    assert all(i < len(text.source) for i in text.source.encode("the ☃ sat"))


def test_a_special_name_in_the_text_is_only_text(text):
    assert not {PAD, BOS, EOS} & set(text.source.encode("<pad> <s> </s>"))


def test_files_hold_the_whole_text(text):
    files = text.files()
    again = Text.load(files.__getitem__)
    assert again.kind == text.kind
    assert again.files() == files
    assert (len(again.source), len(again.target)) == (len(text.source), len(text.target))
    assert all(again.encode_source(line) == text.encode_source(line) for line in [*LINES, "", "☃ the"])


def test_training_is_a_function_of_its_lines(text):
    assert Text.train(text.kind, PAIRS, 60, 60).files() == text.files()


def test_the_vocabulary_stays_within_its_size():
    for kind in ("words", "characters"):
        tokenizer = resolve("tokenizer", TOKENIZERS, kind).train(LINES, 7)
        assert len(tokenizer) == 7
        assert len(tokenizer.encode("the cat")) > 0
    assert WordTokenizer.train(["b b a", "c a b"], 6).pieces([4, 5]) == ["b", "a"]  # the most frequent are kept


def test_a_sentencepiece_vocabulary_larger_than_the_text_allows_is_made_smaller():
    assert 4 < len(SentencePieceTokenizer.train(LINES, 4000)) < 400


@pytest.mark.parametrize(
    ("lines", "size", "sentence"),
    [
        (["the quick brown fox jumps over the lazy dog"], 10, "of 10 entries .*: Vocabulary size is smaller"),
        ([], 100, "the text is empty"),
        (["", "  "], 100, "the text is empty"),
    ],
)
def test_a_text_too_small_or_a_vocabulary_too_small_is_one_sentence(lines, size, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        SentencePieceTokenizer.train(lines, size)
    assert "src/" not in str(caught.value)


ENTRIES = [*SPECIAL, "a", "b"]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        (["<unk>", "<pad>", "<s>", "</s>", "a"], "must list <pad>, <unk>, <s>, </s> first"),
        (["<pad>", "<unk>"], "must list"),
        ([*ENTRIES, "a"], "no entry twice"),
        ([*ENTRIES, "<pad>"], "no entry twice"),
        ([*ENTRIES, 3], "must be a JSON list of strings"),
        ({"a": 1}, "must be a JSON list of strings"),
    ],
)
def test_a_damaged_list_is_refused(entries, sentence):
    with pytest.raises(InputError, match=f"text/source.json.*{sentence}"):
        WordTokenizer.from_bytes(json.dumps(entries).encode(), "text/source.json")


@pytest.mark.parametrize("data", [b"", b"[", b'["\xff"]', b"[" * 100_000])
def test_a_list_that_is_not_json_is_refused(data):
    with pytest.raises(InputError, match=r"text/source\.json is not JSON"):
        CharacterTokenizer.from_bytes(data, "text/source.json")


def test_a_damaged_sentencepiece_model_is_refused(capfd):
    whole = SentencePieceTokenizer.train(LINES, 60).to_bytes()
    for data in (b"", b"garbage" * 10, whole[: len(whole) // 2]):
        with pytest.raises(InputError, match=r"text/source\.model is not a SentencePiece model"):
            SentencePieceTokenizer.from_bytes(data, "text/source.model")
    capfd.readouterr()


def test_a_sentencepiece_model_with_other_special_ids_is_refused(tmp_path):
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
def test_a_text_that_does_not_name_its_kind_is_refused(content):
    with pytest.raises(InputError, match=r"text/text\.json"):
        Text.load({"text/text.json": content}.__getitem__)


def test_text_loads_without_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from edge_attn.text.pipeline import Text\n"
        "for kind in ('words', 'characters', 'sentencepiece'):\n"
        "    text = Text.train(kind, [('a b c', 'c b a')] * 4, 30, 30)\n"
        "    again = Text.load(text.files().__getitem__)\n"
        "    print(again.target.decode(again.target.encode('c b a')))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "c b a\n" * 3, result.stderr


CHARACTERS = st.text(st.characters(exclude_categories=["Cs"]))  # what UTF-8 can hold


@given(st.lists(CHARACTERS, min_size=1))
def test_characters_come_back_exactly(lines):
    tokenizer = CharacterTokenizer.train(lines, 10**6)
    again = CharacterTokenizer.from_bytes(tokenizer.to_bytes(), "the vocabulary")
    for line in lines:
        assert again.decode(again.encode(line)) == line


@given(st.lists(CHARACTERS, min_size=1))
def test_words_come_back_with_one_space_between_them(lines):
    tokenizer = WordTokenizer.train(lines, 10**6)
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
def test_a_surface_is_what_the_user_wrote_for_an_entry(kind, sentence, surface_forms):
    tokenizer = resolve("tokenizer", TOKENIZERS, kind).train(LINES, 60)
    assert tokenizer.surface_forms(sentence) == surface_forms
    assert len(tokenizer.encode(sentence)) == len(surface_forms)


def test_a_run_of_unknown_characters_is_one_surface_of_sentencepiece():
    tokenizer = SentencePieceTokenizer.train(LINES, 60)
    sentence = "the ☃☺ cat☃"
    surface_forms, ids = tokenizer.surface_forms(sentence), tokenizer.encode(sentence)
    assert [surface for surface, i in zip(surface_forms, ids, strict=True) if i == UNK] == ["☃☺", "☃"]
    assert "".join(surface_forms) == sentence.replace(" ", "")
    assert not any("▁" in surface for surface in surface_forms)


def test_pieces_join_to_what_their_ids_decode_to_and_strangers_stay(text):
    ids = text.target.encode(LINES[0])
    pieces = text.target.pieces(ids)
    assert text.target.join(pieces) == text.target.decode(ids)
    assert text.target.join([]) == ""
    assert text.target.join([*pieces, "☃"]).endswith("☃")


@given(st.text())
def test_there_is_a_surface_for_each_entry(line):
    for tokenizer in TRAINED:
        assert len(tokenizer.surface_forms(line)) == len(tokenizer.encode(line))
