"""Tests of golden data: its contents and its files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.parity import golden
from edge_attn.parity.golden import PROJECTIONS, TOP
from edge_attn.text import pipeline
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import EOS, UNK


@pytest.fixture(scope="session")
def toy_text(toy_bundle) -> Text:
    return Bundle.open(toy_bundle).text()


def test_sentences_cover_lengths_and_unknown_words(toy_golden, toy_text, toy_bundle):
    longest = Bundle.open(toy_bundle).manifest.max_source
    lengths = [len(source) for source in toy_golden.sources]
    assert len(toy_golden.sentences) >= 64
    assert min(lengths) == 2  # one token and the end symbol
    assert max(lengths) == longest
    assert len(set(lengths)) > 5
    assert any(UNK in source for source in toy_golden.sources)
    encoded = [tuple(pipeline.encode_truncated(toy_text, line, longest)[0]) for line in toy_golden.sentences]
    assert encoded == list(toy_golden.sources)


def test_hypotheses_are_ranked_with_noise(toy_golden, toy_text):
    config = toy_golden.search
    assert config.beam == config.n_best == 5
    for greedy, n_best in zip(toy_golden.greedy, toy_golden.n_best, strict=True):
        assert len(n_best) == 5
        assert len({hypothesis.tokens for hypothesis in n_best}) == 5
        for hypothesis in (greedy, *n_best):
            assert hypothesis.text == toy_text.target.decode(hypothesis.tokens)
            assert hypothesis.score == pytest.approx(
                hypothesis.log_prob / (len(hypothesis.tokens) + hypothesis.finished)
            )
            assert 0 < hypothesis.noise < 1e-3
        ranked = [hypothesis.score for hypothesis in n_best if hypothesis.finished]
        assert ranked == sorted(ranked, reverse=True)


def test_arrays_have_their_shapes_and_sum_to_one(toy_golden, toy_text):
    arrays = toy_golden.arrays
    steps = sum(len(greedy.tokens) + 1 for greedy in toy_golden.greedy)
    top = min(TOP, len(toy_text.target))
    assert arrays["steps.top_ids"].shape == arrays["steps.top_log_probs"].shape == (steps, top)
    assert arrays["steps.projections"].shape == arrays["steps.next_state.hidden.0"].shape == (steps, PROJECTIONS)
    assert arrays["steps.rest"].shape == arrays["steps.noise"].shape == (steps,)
    assert len(arrays["encoder.memory.keys"]) == sum(map(len, toy_golden.sources))
    assert len(arrays["encoder.state.hidden.0"]) == len(toy_golden.sentences)
    assert (np.diff(arrays["steps.top_log_probs"], axis=1) <= 0).all()
    assert (arrays["steps.noise"] > 0).all()
    assert arrays["steps.noise"].max() < 1e-3
    total = np.exp(arrays["steps.top_log_probs"]).sum(1) + np.exp(arrays["steps.rest"])
    np.testing.assert_allclose(total, 1.0, atol=3e-6)
    for rows, greedy, slices in zip(
        toy_golden.alignments("steps.alignment"), toy_golden.greedy, toy_golden.steps(), strict=True
    ):
        assert len(rows) == len(greedy.tokens) + 1
        np.testing.assert_allclose(rows.sum(1), 1.0, atol=1e-5)
        best = arrays["steps.top_ids"][slices, 0].tolist()
        assert best == [*greedy.tokens, EOS][: len(best)] or not greedy.finished
    for rows, (best, *_), source in zip(
        toy_golden.alignments("beam.alignment"), toy_golden.n_best, toy_golden.sources, strict=True
    ):
        assert rows.shape == (len(best.tokens) + best.finished, len(source))


def test_default_options_are_not_written(toy_golden):
    written = json.loads(toy_golden.files()[golden.FILES[0]])["search"]
    assert sorted(written) == ["beam", "length_penalty", "max_length", "n_best"]
    config = dataclasses.replace(toy_golden.search, no_repeat_ngram=3, suppress=(5, 7))
    files = dataclasses.replace(toy_golden, search=config).files()
    assert json.loads(files[golden.FILES[0]])["search"]["suppress"] == [5, 7]
