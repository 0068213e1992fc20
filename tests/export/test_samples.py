"""The sentences of the golden data: enough of them, and the adversarial ones among them."""

from __future__ import annotations

import pytest

from edge_attn.errors import ExportError
from edge_attn.export.samples import LEAST, STRANGE, choose
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
    return Text.train(request.param, lines, 60, 60)


@pytest.mark.parametrize("samples", [LINES, LINES[:1], [f"{a} {b}" for a in LINES for b in LINES * 5]])
def test_enough_sentences_and_the_adversarial_ones(text, samples):
    longest = 70 if text.kind == "characters" else 20
    chosen = choose(text, samples, longest)
    lengths = [len(text.encode_source(sentence)) for sentence in chosen]
    assert len(set(chosen)) == len(chosen) >= LEAST
    assert min(lengths) == 2  # one token and the end symbol
    assert max(lengths) >= longest  # cut to it
    assert len(set(lengths)) > 5
    assert any(UNK in text.encode_source(sentence) for sentence in chosen)
    assert all(sentence == sentence.strip() != "" for sentence in chosen)


def test_of_many_sentences_all_lengths_are_taken():
    text = Text.train("words", [(LINES[1], LINES[1])], 60, 60)
    words = LINES[1].split()
    samples = [" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    assert len(samples) > LEAST
    lengths = {len(text.encode_source(sentence)) for sentence in choose(text, samples, 20)}
    assert lengths >= set(range(2, len(words) + 2))


def test_the_same_sentences_are_chosen_again():
    text = Text.train("words", [(line, line) for line in LINES], 60, 60)
    assert choose(text, LINES, 20) == choose(text, list(reversed(LINES)), 20)


@pytest.mark.parametrize("samples", [[], ["", "  "]])
def test_no_sentence(samples):
    text = Text.train("words", [(line, line) for line in LINES], 60, 60)
    with pytest.raises(ExportError, match=r"no sentence was given .* with --input"):
        choose(text, samples, 20)


def test_too_few_to_make_enough_of():
    text = Text.train("characters", [("ab", "ab")], 60, 60)
    with pytest.raises(ExportError, match=r"only \d+ sentences .* give a file of at least 64 with --input"):
        choose(text, ["a", "b"], 4)


def test_a_vocabulary_that_knows_everything():
    class Everything:
        kind = "characters"

        def encode_source(self, text: str) -> list[int]:
            return [*(4 + ord(c) for c in text), 3]

    assert any(STRANGE[0] in sentence for sentence in choose(Everything(), LINES, 20))
