"""Lines of several sentences are split and joined without loss, and their alignments are shifted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_attn.errors import MissingExtraError
from edge_attn.runtimes.tasks.sentence_splitting import join_translations, split_sentences
from edge_attn.runtimes.tasks.translation import Translation


@pytest.mark.parametrize(
    ("text", "sentences", "separators"),
    [
        ("I am cold. Where is he?  Here!", ["I am cold.", "Where is he?", "Here!"], [" ", "  "]),
        ("Dr. Smith is here at 7.46 p.m. today.", ["Dr. Smith is here at 7.46 p.m. today."], []),
        ("  one sentence\t", ["one sentence"], []),
        ("", [], []),
        ("   ", [], []),
        ("A \ud83d word. Yes it is.", ["A \ufffd word.", "Yes it is."], [" "]),
    ],
)
def test_sentences_and_separators(text, sentences, separators):
    assert split_sentences(text, "en") == (sentences, separators)


@given(st.text(), st.sampled_from(["en", "fr", "de", "ja", "xx"]))
def test_no_character_is_lost(text, language):
    text = text.encode("utf-8", "replace").decode()
    sentences, separators = split_sentences(text, language)
    assert len(separators) == max(len(sentences) - 1, 0)
    joined = "".join(part for pair in zip(sentences, [*separators, ""], strict=False) for part in pair)
    assert joined == text.strip()


def translation(tokens: int, sources: int, **options: object) -> Translation:
    """Return a translation whose weights are 1 at one source token, and 0.25 of the last row at the end symbol."""
    alignment = np.zeros((tokens + 1, sources + 1), np.float32)
    alignment[np.arange(tokens), np.arange(tokens) % sources] = 1.0
    alignment[-1, -1] = 1.0
    names = tuple(f"t{i}" for i in range(tokens))
    source = (*(f"s{i}" for i in range(sources)), "</s>")
    return Translation(" ".join(names), -1.0, -2.0, names, source, alignment, source_length=sources, **options)


def test_joined_translation_has_shifted_alignments():
    joined = join_translations([translation(2, 2), translation(1, 3, finished=False, cut=True)], ["  "])
    assert joined.text == "t0 t1  t0"
    assert joined.tokens == ("t0", "t1", "t0")
    assert joined.source_tokens == ("s0", "s1", "s0", "s1", "s2", "</s>")
    assert joined.pharaoh() == "0-0 1-1 2-2"
    assert joined.alignment.shape == (4, 6)
    np.testing.assert_allclose(joined.alignment.sum(1), 1.0)
    assert joined.alignment[-1, -1] == 1.0
    assert (joined.score, joined.log_prob, joined.source_length) == (-2.0, -4.0, 5)
    assert (joined.finished, joined.cut) == (False, True)


def test_one_sentence_is_unchanged():
    single = translation(2, 2)
    assert join_translations([single], []) is single


def test_sentences_without_tokens_or_weights_are_joined():
    empty = Translation("", 0.0, 0.0, (), ())
    assert join_translations([empty, translation(1, 1)], [" "]).pharaoh() == "0-0"
    assert join_translations([empty, empty], [" "]).alignment is None


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentencex", None)
    with pytest.raises(MissingExtraError, match=r"sentencex is not installed; run: pip install 'edge-attn\[split\]'"):
        split_sentences("a", "en")
