"""Replacement of unknown words by the attended source word or by a phrase table, with table models and real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from paths import FORMER_BUNDLE, KINDS_FOLDER
from table_model import NAMES, TableModel, table, translator

import edge_attn
from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.errors import InputError, UsageError
from edge_attn.runtimes.tasks.unk_replacement import read_phrase_table, replace_unknown_tokens
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import SPECIAL, UNK, CharacterTokenizer

NO_ATTENTION = KINDS_FOLDER / "none-gru.zip"
PROBABILITIES = {"<s>": {"a": 0.9, "b": 0.1}, "a": {"<unk>": 0.9, "</s>": 0.1}, "<unk>": {"b": 1.0}, "b": {"</s>": 1.0}}
"""Probability of each token after another; the most likely sentence is `a <unk> b`."""


def attend(position: int) -> list[int]:
    """Return the attended position after each token: `position` after `a`, before the unknown word; else the first."""
    return [position if name == "a" else 0 for name in NAMES]


@pytest.mark.parametrize(
    ("position", "text"),
    [(0, "a b b"), (1, "a Zebra-7 b"), (2, "a zebra-7 b"), (3, "a <unk> b"), (4, "a b b")],
    ids=["a known word", "unknown", "original case", "the text of a special symbol", "the end symbol is not a word"],
)
def test_unknown_word_becomes_the_attended_word(position, text):
    model = translator(TableModel(table(PROBABILITIES), attend(position)))
    [translation] = model.translate(["b  Zebra-7\tzebra-7 <unk>"], replace_unknown=True)
    assert translation.text == text
    assert translation.tokens == tuple(text.split())
    [plain] = model.translate(["b  Zebra-7\tzebra-7 <unk>"])
    assert plain.text == "a <unk> b"
    assert (translation.log_prob, translation.score, translation.pharaoh()) == (
        plain.log_prob,
        plain.score,
        plain.pharaoh(),
    )


@pytest.mark.parametrize(("position", "text"), [(0, "a le b b"), (1, "a Zebra b"), (2, "a zèbre b")])
def test_phrase_table_precedes_the_copy(position, text):
    model = translator(TableModel(table(PROBABILITIES), attend(position)))
    phrases = {"b": "le b", "zebra": "zèbre", "<unk>": "never"}
    [translation] = model.translate(["b Zebra zebra"], replace_unknown=True, phrase_table=phrases)
    assert translation.text == text


def test_each_hypothesis_and_sentence_has_its_own_words():
    model = translator(TableModel(table(PROBABILITIES), attend(1)))
    sentences = ["b x", "a yy c", "b zzz c c"]
    for beam in (1, 3):
        translations = model.translate(sentences, beam=beam, n_best=beam, replace_unknown=True, alignments=False)
        assert [t.text for t in translations] == ["a x b", "a yy b", "a zzz b"]
        assert all("<unk>" not in h.text for t in translations for h in t.n_best)


def test_truncated_sentence_has_only_its_first_words():
    model = translator(TableModel(table(PROBABILITIES), attend(2)), max_source=3)
    with pytest.warns(UserWarning, match="only the first 2 of 3 tokens"):
        [translation] = model.translate(["x y z"], replace_unknown=True)
    assert translation.text == "a x b"  # position 2 is the end symbol, not a word; the next best is the first


def test_word_of_a_character_model_is_a_character():
    entries = [*SPECIAL, "a", "b", "c"]
    text = Text("characters", CharacterTokenizer(entries), CharacterTokenizer(entries))
    texts = [
        translator(TableModel(table(PROBABILITIES), attend(position)), text)
        .translate(["é ☃"], replace_unknown=True)[0]
        .text
        for position in range(3)
    ]
    assert texts == ["aéb", "a☃b", "a☃b"]  # white space is not a word: the next best position


@pytest.mark.parametrize(
    ("sentence", "pieces", "table_", "text"),
    [
        ("I like Αθήνα.", ("▁J", "'", "aime", "▁", None, "."), {}, "J'aime Αθήνα."),
        ("I like Αθήνα.", ("▁J", "'", "aime", "▁", None, "."), {"Αθήνα": "Athènes"}, "J'aime Athènes."),
        ("I like ☃☺", ("▁d", "'", None), {"☃☺": "bon homme", "☃": "never"}, "d'bon homme"),
        ("I like ☃", (None, None), {}, "☃☃"),
        ("I like cats", ("▁", None), {}, "cats"),
    ],
)
def test_word_of_sentencepiece_is_a_piece_without_mark(sentence, pieces, table_, text):
    """`None` is an unknown piece, and attends to the sentence's unknown piece, or to its last."""
    model = edge_attn.load(FORMER_BUNDLE)
    ids = model.text.source.encode(sentence)
    surface_forms = model.text.source.surface_forms(sentence)
    position = ids.index(UNK) if UNK in ids else len(ids) - 1
    tokens = tuple(UNK if piece is None else model.text.target._model.piece_to_id(piece) for piece in pieces)
    weights = np.full((len(pieces), len(ids) + 1), 0.1)
    weights[:, position] = 0.5
    weights[:, -1] = 0.9
    hypothesis = Hypothesis(tokens, 0.0, 0.0, False, weights)
    replaced = replace_unknown_tokens(hypothesis, model.text.target.pieces(tokens), surface_forms, table_)
    assert model.text.target.join(replaced) == text


def test_mark_alone_is_not_a_word():
    weights = np.array([[0.6, 0.4, 0.0]])
    assert replace_unknown_tokens(Hypothesis((UNK,), 0.0, 0.0, False, weights), ["<unk>"], ["", "☃"], {}) == ["☃"]
    assert replace_unknown_tokens(Hypothesis((UNK,), 0.0, 0.0, False, weights), ["<unk>"], ["", ""], {}) == ["<unk>"]


def test_embedded_model_copies_unknown_words():
    [plain] = edge_attn.load(FORMER_BUNDLE).translate(["I like ☃."])
    [translation] = edge_attn.load(FORMER_BUNDLE).translate(["I like ☃."], replace_unknown=True)
    assert "⁇" in plain.text
    assert translation.text == "J'aime ☃."
    assert translation.tokens == tuple("☃" if token == "<unk>" else token for token in plain.tokens)


def test_known_words_do_not_change(toy_bundle, toy_pairs):
    model = edge_attn.load(toy_bundle)
    sentences = [line.split("\t")[0] for line in toy_pairs.read_text(encoding="utf-8").splitlines()[:20]]
    phrases = {word: "never" for sentence in sentences for word in sentence.split()}
    assert model.translate(sentences, replace_unknown=True, phrase_table=phrases) == model.translate(sentences)


def test_model_without_attention_is_refused():
    with pytest.raises(UsageError, match="replacing unknown words needs attention weights, and this model has no"):
        edge_attn.load(NO_ATTENTION).translate(["a cat"], replace_unknown=True)


def test_phrase_table_alone_is_refused():
    with pytest.raises(UsageError, match="`phrase_table` needs `replace_unknown`"):
        translator(TableModel(table(PROBABILITIES), attend(0))).translate(["a"], phrase_table={})


def test_first_line_of_a_source_counts(tmp_path):
    (tmp_path / "table.tsv").write_text("\ufeffzebra\tzèbre\n\nNew York\tla ville de New York\nzebra\tautre\n")
    assert read_phrase_table(tmp_path / "table.tsv") == {"zebra": "zèbre", "New York": "la ville de New York"}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"a\tb\nzebra\n", "line 2: expected source and target .*, got 1 column"),
        (b"a\tb\tc\td\n", "line 1: expected source and target .*, got 4 columns"),
        (b"a\tb\n\na\t\n", "line 3: the target of a phrase table's line must not be empty"),
        (b"\tb\n", "line 1: the source of a phrase table's line must not be empty"),
        (b"a\tb\n\xff\tb\n", "line 2: not UTF-8 at byte 1"),
        (b"", "is empty"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_invalid_phrase_table_is_refused_with_its_line(tmp_path, content, error):
    if content is not None:
        (tmp_path / "table.tsv").write_bytes(content)
    with pytest.raises(InputError, match=f"table.tsv.*{error}") as caught:
        read_phrase_table(tmp_path / "table.tsv")
    assert caught.value.exit_code == 4


@pytest.fixture
def run(edge_attn_cli, tmp_path):
    """Return a function that translates a line with the embedded model."""

    def run(*options: object, bundle: Path = FORMER_BUNDLE, **expected: object):
        (tmp_path / "input").write_text("I like ☃.\n", encoding="utf-8")
        return edge_attn_cli("translate", bundle, "--input", tmp_path / "input", *options, **expected)

    return run


def test_command_replaces_unknown_words(run, tmp_path):
    (tmp_path / "table.tsv").write_text("☃\tles hivers\n", encoding="utf-8")
    assert "⁇" in run().stdout
    assert run("--replace-unknown").stdout == "J'aime ☃.\n"
    options = ["--replace-unknown", "--phrase-table", tmp_path / "table.tsv"]
    assert run(*options).stdout == "J'aime les hivers.\n"
    [line] = run(*options, "--format", "jsonl", "--beam", 3, "--n-best", 3).stdout.splitlines()
    assert all("<unk>" not in hypothesis["tokens"] for hypothesis in json.loads(line)["translations"])
    alignments = []
    for extra in ([], options):
        run(*extra, "--alignments", tmp_path / "alignments")
        alignments.append((tmp_path / "alignments").read_text())
    assert alignments[0] == alignments[1] != "\n"


def test_command_refuses_invalid_options(run, tmp_path):
    run("--phrase-table", tmp_path / "none.tsv", code=4, error="none.tsv cannot be read: No such file or directory")
    (tmp_path / "table.tsv").write_text("a\tb\nzebra\n")
    options = ["--phrase-table", tmp_path / "table.tsv", "--output", tmp_path / "out"]
    run("--replace-unknown", *options, code=4, error="table.tsv, line 2: expected source and target")
    (tmp_path / "table.tsv").write_text("a\tb\n")
    run(*options, code=2, error="a phrase table replaces unknown words: --phrase-table needs --replace-unknown")
    error = "replacing unknown words needs attention weights, and this model has no attention"
    run("--replace-unknown", *options, bundle=NO_ATTENTION, code=2, error=error)
    assert not (tmp_path / "out").exists()
