"""Tests of parts of the decoder levels: mismatches between beams."""

from __future__ import annotations

import dataclasses

import pytest

from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.parity.golden import ReferenceHypothesis
from edge_attn.runtimes.tasks import decoder_levels
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import SPECIAL, WordTokenizer

WORDS = WordTokenizer([*SPECIAL, *"abcdef"])
TEXT = Text("words", WORDS, WORDS)


def reference_hypothesis(tokens: tuple[int, ...], score: float, noise: float = 0.0) -> ReferenceHypothesis:
    return ReferenceHypothesis(
        tokens, WORDS.decode(tokens), score * (len(tokens) + 1), score, noise * (len(tokens) + 1), True
    )


def test_beam_mismatch_needs_two_recorded_hypotheses():
    a, b = reference_hypothesis((5, 6), -0.5, 1e-4), reference_hypothesis((5, 7, 8), -0.50015, 1e-4)
    hypotheses = {item.tokens: Hypothesis(item.tokens, item.log_prob, item.score, True) for item in (a, b)}

    def mismatch_of(recorded, actual):
        return decoder_levels._beam_mismatch(recorded, actual, 3, "the source", TEXT)

    unrecorded = Hypothesis((9,), -0.9, -0.5, True)
    assert mismatch_of((a, b), (hypotheses[a.tokens], hypotheses[b.tokens])) is None
    mismatch = mismatch_of((a, b), (hypotheses[b.tokens], hypotheses[a.tokens]))
    assert (mismatch.sentence, mismatch.step, mismatch.reference, mismatch.candidate) == (3, 1, 6, 7)
    assert mismatch.margin == pytest.approx(0.00015)
    assert mismatch.noise == pytest.approx(0.0002)
    assert mismatch.within_noise
    assert mismatch.texts() == [
        "source     the source",
        "reference  b c",
        "device     b d e",
        "differs    'd' instead of 'c' after 'b'",
    ]
    quiet = dataclasses.replace(b, noise=0.0)
    assert not mismatch_of((a, quiet), (hypotheses[b.tokens], hypotheses[a.tokens])).within_noise
    assert not mismatch_of((a, b), (unrecorded, hypotheses[b.tokens])).within_noise
    reason = "no margin to excuse it: it is not among the reference's 2 translations (NOT excused)"
    assert str(mismatch_of((a, b), (unrecorded, hypotheses[b.tokens]))).endswith(reason)
    shorter = mismatch_of((a, b), (hypotheses[a.tokens],))
    assert not shorter.within_noise
    assert "the reference has 2 translations, the device 1 translations" in str(shorter)
    assert not mismatch_of((a,), (hypotheses[a.tokens], hypotheses[b.tokens])).within_noise
