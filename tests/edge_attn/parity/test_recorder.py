"""Tests of the recorder: golden data of the toy checkpoint and of untrained models, and summaries of arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: a device needs none")

import torch

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Manifest
from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.training import TextConfig
from edge_attn.models.graphs import encoder_decoder_graphs
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.parity import reader, recorder
from edge_attn.parity.golden import PROJECTIONS, SUMMARY, TOP, Golden
from edge_attn.parity.recorder import MIN_LOG_REST, projection, record_translation, run_teacher_forced, summarize
from edge_attn.parity.tolerances import BOUNDS
from edge_attn.reference import CANDIDATES, ModelReferences, open_checkpoint
from edge_attn.text import pipeline
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import EOS

torch.set_num_threads(1)

WORDS = [f"w{i}" for i in range(90)]
LINES = [" ".join(WORDS[i : i + 1 + i % 7]) for i in range(0, 80, 4)]


def small(attention: str, words: int) -> tuple[Seq2Seq, Text]:
    """Return an untrained model whose distribution is sharp enough to end sentences."""
    text = Text.train(TextConfig("words", 200, 200), [(" ".join(WORDS[:words]),) * 2])
    torch.manual_seed(5)
    sizes = {"embedding": 16, "encoder_hidden": 8, "decoder_hidden": 16, "attention_size": 8}
    model = Seq2Seq(Seq2SeqConfig(attention=attention, **sizes), len(text.source), len(text.target)).eval()
    with torch.no_grad():
        model.output.weight *= 6
        model.output.bias[EOS] += 2
    return model, text


@pytest.fixture(scope="session", params=["additive, 94 entries", "additive, 13 entries", "none, 94 entries"])
def recorded(request) -> tuple[Seq2Seq, Text, Golden]:
    attention, entries = request.param.split(", ")
    model, text = small(attention, int(entries.split()[0]) - 4)
    return model, text, record_translation(ModelReferences(model), text, LINES, 9)


def test_golden_data_matches_the_checkpoint(toy_golden, toy_checkpoint):
    live = open_checkpoint(toy_checkpoint)
    golden_data = record_translation(live.references, live.text, toy_golden.sentences[:9], 20)
    assert golden_data.sources == toy_golden.sources[:9]
    assert [hypothesis.text for hypothesis in golden_data.greedy] == [
        hypothesis.text for hypothesis in toy_golden.greedy[:9]
    ]
    assert [[hypothesis.tokens for hypothesis in n_best] for n_best in golden_data.n_best] == [
        [hypothesis.tokens for hypothesis in n_best] for n_best in toy_golden.n_best[:9]
    ]
    assert golden_data.vocabulary == toy_golden.vocabulary
    rows = slice(0, golden_data.steps()[-1].stop)
    for name in SUMMARY:
        np.testing.assert_allclose(
            golden_data.arrays[f"steps.{name}"], toy_golden.arrays[f"steps.{name}"][rows], atol=1e-4
        )


def test_recording_survives_its_files(recorded):
    model, _, golden_data = recorded
    specs = {name: graph.spec for name, graph in encoder_decoder_graphs(model, CANDIDATES).items()}
    manifest = Manifest(3, "seq2seq", "translation", "fp32", specs, 9)
    loaded = reader.load(Bundle(Path("bundle"), manifest, golden_data.files()))
    assert loaded == golden_data
    assert loaded.arrays.keys() == golden_data.arrays.keys()
    assert all(np.array_equal(loaded.arrays[name], golden_data.arrays[name]) for name in golden_data.arrays)


def test_recording_twice_writes_the_same_bytes(recorded):
    model, text, golden_data = recorded
    assert record_translation(ModelReferences(model), text, LINES, 9).files() == golden_data.files()


def test_small_vocabulary_is_recorded_completely(recorded):
    _, text, golden_data = recorded
    assert golden_data.arrays["steps.top_ids"].shape[1] == min(TOP, len(text.target))
    total = np.exp(golden_data.arrays["steps.top_log_probs"].astype(np.float64)).sum(1)
    if len(text.target) <= TOP:
        assert (golden_data.arrays["steps.rest"] == np.float32(MIN_LOG_REST)).all()
    else:
        total += np.exp(golden_data.arrays["steps.rest"])
    np.testing.assert_allclose(total, 1.0, atol=3e-6)


def test_model_without_attention_has_no_alignment(recorded):
    model, _, golden_data = recorded
    attends = model.config.attention != "none"
    assert ("steps.alignment" in golden_data.arrays) is ("beam.alignment" in golden_data.arrays) is attends
    assert len(golden_data.alignments("steps.alignment")) == (len(LINES) if attends else 0)
    assert ("encoder.memory.summary" in golden_data.arrays) is not attends


def test_long_sentence_is_truncated():
    model, text = small("dot", 90)
    golden_data = record_translation(ModelReferences(model), text, [" ".join(WORDS[:30])], 9)
    assert golden_data.sources == (tuple(text.encode_source(" ".join(WORDS[:8]))),)
    assert pipeline.encode_truncated(text, " ".join(WORDS[:30]), 9)[1]
    assert not pipeline.encode_truncated(text, " ".join(WORDS[:8]), 9)[1]


def test_noise_is_the_difference_of_two_precisions(recorded):
    model, text, golden_data = recorded
    reference = ModelReferences(model).reference
    noiseless = recorder.record(reference, reference, text, LINES, golden_data.search, 9)
    assert (noiseless.arrays["steps.noise"] == 0).all()
    assert {hypothesis.noise for hypothesis in noiseless.greedy} == {0.0}
    assert noiseless.sources == golden_data.sources


def test_every_figure_has_its_noise(recorded):
    model, text, golden_data = recorded
    measures = {key.partition(" ")[0] for key in golden_data.noise}
    attends = {"L1.alignment", "L3.alignment"} if model.config.attention != "none" else set()
    of_every_model = {name for name in BOUNDS["fp32"] if name.startswith("L1.")} - {"L1.alignment"}
    of_every_model |= {"L2.log_prob", "L2.rest", "L2.projection", "L2.kl", "L2.probe", "L3.log_prob", "L3.score"}
    assert measures == of_every_model | attends
    assert 1e-8 < golden_data.noise["L2.log_prob"] < 2e-4
    assert 1e-9 < golden_data.noise["L1.max_abs state.hidden.0"] < 1e-5
    reference = ModelReferences(model).reference
    noiseless = recorder.record(reference, reference, text, LINES, golden_data.search, 9)
    along_beam = noiseless.noise.pop("L3.alignment", 0.0)  # beam search has other batches than teacher forcing
    assert along_beam < 1e-5
    assert set(noiseless.noise.values()) == {0.0}


def test_noise_of_the_encoder_is_that_of_its_exported_form(recorded):
    """A folded output is another tensor than the reference's: its noise is not the distance between the two."""
    _, _, golden_data = recorded
    names = {name.partition(".")[2] for name in golden_data.arrays if name.startswith("encoder.")}
    assert {key.partition(" ")[2] for key in golden_data.noise if key.startswith("L1.max_abs ")} == names
    assert all(golden_data.noise[f"L1.max_abs {name}"] < 1e-5 for name in names)


def test_impossible_tokens_keep_the_projections_finite():
    rows = np.log(np.array([[0.5, 0.5, 1e-30, 1e-30]]))
    rows[0, 2] = -np.inf
    moved = rows[:, [0, 1, 3, 2]]
    before, after = (summarize(values, np.array([[0, 1]])) for values in (rows, moved))
    assert np.isfinite(before["projections"]).all()
    assert np.abs(before["projections"] - after["projections"]).max() > 1.0


def test_batch_equals_single_sentences(recorded):
    model, _, golden_data = recorded
    targets = [hypothesis.tokens for hypothesis in golden_data.greedy]
    runs = [
        run_teacher_forced(ModelReferences(model).reference, golden_data.sources, targets, batch) for batch in (1, 7)
    ]
    for alone, batched in zip(*runs, strict=True):
        np.testing.assert_allclose(alone.log_probs, batched.log_probs, atol=1e-5)
        assert alone.encoder.keys() == batched.encoder.keys()
        for name, value in alone.encoder.items():
            np.testing.assert_allclose(value, batched.encoder[name], atol=1e-6)


# ---- summaries show each change


def test_projections_are_balanced_and_constant():
    signs = projection(1600) * 40
    assert signs.shape == (1600, PROJECTIONS)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert (signs.sum(0) == 0).all()
    assert len(np.unique(signs, axis=1).T) == PROJECTIONS
    assert np.array_equal(projection(1600) * 40, signs)
    assert projection(3).shape == (3, PROJECTIONS)


def test_change_of_a_rare_token_changes_only_the_projections():
    random = np.random.default_rng(0)
    row = random.standard_normal((1, 5000)) * 3
    row -= np.log(np.exp(row).sum())
    top = np.argsort(-row, axis=1)[:, :TOP]
    changed = row.copy()
    changed[0, row.argmin()] += 0.05
    before, after = summarize(row, top), summarize(changed, top)
    assert np.array_equal(before["top_log_probs"], after["top_log_probs"])
    assert np.abs(before["rest"] - after["rest"]).max() < 1e-6
    assert np.abs(before["projections"] - after["projections"]).max() == pytest.approx(0.05 / 5000**0.5)


def test_digest_distinguishes_vocabularies():
    vocabulary = Text.train(TextConfig("words", 9, 9), [("a b c", "a b c")]).target
    other = Text.train(TextConfig("words", 9, 9), [("a c b", "a c d")]).target
    assert recorder.vocabulary_digest(vocabulary) == recorder.vocabulary_digest(
        type(vocabulary)(["<pad>", "<unk>", "<s>", "</s>", *"abc"])
    )
    assert recorder.vocabulary_digest(vocabulary) != recorder.vocabulary_digest(other)
