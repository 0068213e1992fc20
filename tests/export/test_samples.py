"""Tests of choose_sentences: enough sentences, with the adversarial ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_attn.config.training import TextConfig
from edge_attn.errors import ExportError
from edge_attn.export.samples import MIN_SENTENCES, RARE_CHARACTERS, choose_sentences, warn_of_odd_lines
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import UNK

LINES = [
    "the cat sees a dog",
    "a small bird follows the old king and the king calls every child",
    "every child",
    "this horse eats",
    "bread",
]


@pytest.fixture(params=["words", "characters", "sentencepiece"])
def text(request) -> Text:
    lines = [(line, line) for line in LINES * 20]
    return Text.train(TextConfig(request.param, 60, 60), lines)


@pytest.mark.parametrize("samples", [LINES, LINES[:1], [f"{a} {b}" for a in LINES for b in LINES * 5]])
def test_sentences_are_enough_and_adversarial(text, samples):
    longest = 70 if text.kind == "characters" else 20
    chosen = choose_sentences(text, samples, longest)
    lengths = [len(text.encode_source(sentence)) for sentence in chosen]
    assert len(set(chosen)) == len(chosen) >= MIN_SENTENCES
    assert min(lengths) == 2  # one token and the end symbol
    assert max(lengths) >= longest  # truncated to it
    assert len(set(lengths)) > 5
    assert any(UNK in text.encode_source(sentence) for sentence in chosen)
    assert all(sentence == sentence.strip() != "" for sentence in chosen)


def test_many_sentences_cover_all_lengths():
    text = Text.train(TextConfig("words", 60, 60), [(LINES[1], LINES[1])])
    words = LINES[1].split()
    samples = [" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    assert len(samples) > MIN_SENTENCES
    lengths = {len(text.encode_source(sentence)) for sentence in choose_sentences(text, samples, 20)}
    assert lengths >= set(range(2, len(words) + 2))


def test_choice_ignores_the_order():
    text = Text.train(TextConfig("words", 60, 60), [(line, line) for line in LINES])
    assert choose_sentences(text, LINES, 20) == choose_sentences(text, list(reversed(LINES)), 20)


@pytest.mark.parametrize("samples", [[], ["", "  "]])
def test_no_sentence_fails(samples):
    text = Text.train(TextConfig("words", 60, 60), [(line, line) for line in LINES])
    with pytest.raises(ExportError, match=r"there is no sentence .* with --input"):
        choose_sentences(text, samples, 20)


def test_too_few_sentences_fail():
    text = Text.train(TextConfig("characters", 60, 60), [("ab", "ab")])
    with pytest.raises(ExportError, match=r"yield only \d+ .* pass a file of at least 64 with --input"):
        choose_sentences(text, ["a", "b"], 4)


def test_vocabulary_without_unknown_gets_rare_characters():
    class AllCharacters:
        kind = "characters"

        def encode_source(self, text: str) -> list[int]:
            return [*(4 + ord(c) for c in text), 3]

    assert any(RARE_CHARACTERS[0] in sentence for sentence in choose_sentences(AllCharacters(), LINES, 20))


def test_source_too_long_for_the_golden_data_is_refused(text):
    with pytest.raises(ExportError, match=r"data.max_tokens = 1000000000 is the longest source.* at most 4096"):
        choose_sentences(text, LINES * 20, 10**9)


def test_sentences_that_do_not_grow_are_refused(text, monkeypatch):
    monkeypatch.setattr(Text, "encode_source", lambda self, sentence: [5, 3])
    with pytest.raises(ExportError, match="have 2 tokens and no more, and the golden data needs one of 20"):
        choose_sentences(text, LINES * 20, 20)


def test_tabs_and_unknown_tokens_of_a_file_are_named(caplog):
    text = Text.train(TextConfig("words", 60, 60), [(line, line) for line in LINES])
    path = Path("lines.tsv")
    warn_of_odd_lines(path, LINES, text)
    assert caplog.messages == []
    warn_of_odd_lines(path, [f"{LINES[0]}\tun chat", LINES[1], "ein Hund"], text)
    tabs, unknown = caplog.messages
    assert tabs == "lines.tsv: 1 of 3 lines have a tab; expected source sentences, not pairs"
    assert unknown.startswith("lines.tsv: 4 of ")
    assert unknown.endswith(" tokens are unknown to the model; expected sentences in the language of its source")
