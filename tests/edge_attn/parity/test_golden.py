"""Golden data: its contents, writing and reading, and the refusal of damaged files."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: a device needs none")

import torch

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.models import Seq2SeqConfig
from edge_attn.decoding import batching
from edge_attn.errors import BundleError
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.parity import golden, recorder
from edge_attn.parity.golden import FILES, PROJECTIONS, SUMMARY, TOP, Golden
from edge_attn.parity.recorder import MIN_LOG_REST, projection, record_translation, run_teacher_forced, summarize
from edge_attn.reference import ModelReferences, open_checkpoint
from edge_attn.text import pipeline
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import EOS, UNK

torch.set_num_threads(1)

WORDS = [f"w{i}" for i in range(90)]
LINES = [" ".join(WORDS[i : i + 1 + i % 7]) for i in range(0, 80, 4)]


@pytest.fixture(scope="session")
def toy_golden(toy_bundle) -> Golden:
    return golden.load(Bundle.open(toy_bundle).read)


@pytest.fixture(scope="session")
def toy_text(toy_bundle) -> Text:
    return Bundle.open(toy_bundle).text()


def small(attention: str, words: int) -> tuple[Seq2Seq, Text]:
    """Return an untrained model whose distribution is sharp enough to end sentences."""
    text = Text.train("words", [(" ".join(WORDS[:words]),) * 2], 200, 200)
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


# ---- golden data of a bundle


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
        assert len({one.tokens for one in n_best}) == 5
        for one in (greedy, *n_best):
            assert one.text == toy_text.target.decode(one.tokens)
            assert one.score == pytest.approx(one.log_prob / (len(one.tokens) + one.finished))
            assert 0 < one.noise < 1e-3
        ranked = [one.score for one in n_best if one.finished]
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


def test_golden_data_is_what_the_checkpoint_computes(toy_golden, toy_checkpoint):
    live = open_checkpoint(toy_checkpoint)
    golden_data = record_translation(live.references, live.text, toy_golden.sentences[:9], 20)
    assert golden_data.sources == toy_golden.sources[:9]
    assert [one.text for one in golden_data.greedy] == [one.text for one in toy_golden.greedy[:9]]
    assert [[one.tokens for one in n_best] for n_best in golden_data.n_best] == [
        [one.tokens for one in n_best] for n_best in toy_golden.n_best[:9]
    ]
    assert golden_data.vocabulary == toy_golden.vocabulary
    rows = slice(0, golden_data.steps()[-1].stop)
    for name in SUMMARY:
        np.testing.assert_allclose(
            golden_data.arrays[f"steps.{name}"], toy_golden.arrays[f"steps.{name}"][rows], atol=1e-4
        )


# ---- recording any model


def test_recording_survives_its_files(recorded):
    _, _, golden_data = recorded
    back = Golden.load(golden_data.files())
    assert back == golden_data
    assert back.arrays.keys() == golden_data.arrays.keys()
    assert all(np.array_equal(back.arrays[name], golden_data.arrays[name]) for name in golden_data.arrays)


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
    flat = recorder.record(reference, reference, text, LINES, golden_data.search, 9)
    assert (flat.arrays["steps.noise"] == 0).all()
    assert {one.noise for one in flat.greedy} == {0.0}
    assert flat.sources == golden_data.sources


def test_batch_equals_single_sentences(recorded):
    model, _, golden_data = recorded
    targets = [one.tokens for one in golden_data.greedy]
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
    one = Text.train("words", [("a b c", "a b c")], 9, 9).target
    other = Text.train("words", [("a c b", "a c d")], 9, 9).target
    assert recorder.vocabulary_digest(one) == recorder.vocabulary_digest(
        type(one)(["<pad>", "<unk>", "<s>", "</s>", *"abc"])
    )
    assert recorder.vocabulary_digest(one) != recorder.vocabulary_digest(other)


# ---- damage


def npz(change) -> object:
    """Return a change of the files that applies `change` to the arrays by name."""

    def rewrite(files: dict[str, bytes]) -> None:
        with np.load(io.BytesIO(files[FILES[1]])) as stored:
            arrays = {name: stored[name] for name in stored.files}
        change(arrays)
        data = io.BytesIO()
        np.savez_compressed(data, **arrays)
        files[FILES[1]] = data.getvalue()

    return rewrite


def in_json(change) -> object:
    """Return a change of the files that applies `change` to the content of the JSON file."""

    def rewrite(files: dict[str, bytes]) -> None:
        content = json.loads(files[FILES[0]])
        replacement = change(content)
        files[FILES[0]] = json.dumps(content if replacement is None else replacement).encode()

    return rewrite


def replace(name: str, data) -> object:
    return lambda files: files.update({name: data(files[name])})


def plain_array(_: bytes) -> bytes:
    data = io.BytesIO()
    np.save(data, np.zeros(3))
    return data.getvalue()


DAMAGE = {
    "json cut": replace(FILES[0], lambda data: data[:-30]),
    "json empty": replace(FILES[0], lambda data: b""),
    "json not text": replace(FILES[0], lambda data: b"\xff\xfe\x00"),
    "json deeply nested": replace(FILES[0], lambda data: b"[" * 100_000),
    "json a list": in_json(lambda content: [1]),
    "json a number": in_json(lambda content: 3),
    "key missing": in_json(lambda content: content.pop("sources") and None),
    "key unknown": in_json(lambda content: content.update(more=1)),
    "tokens of text": in_json(lambda content: content["sources"].__setitem__(0, "text")),
    "beam of zero": in_json(lambda content: content["search"].update(beam=0)),
    "sentence lost": in_json(lambda content: content["sentences"].pop() and None),
    "n-best list empty": in_json(lambda content: content["n_best"][0].clear()),
    "no sentence": in_json(lambda content: {**content, "sentences": [], "sources": [], "greedy": [], "n_best": []}),
    "npz cut": replace(FILES[1], lambda data: data[:-200]),
    "npz empty": replace(FILES[1], lambda data: b""),
    "npz noise": replace(FILES[1], lambda data: bytes(range(256)) * 9),
    "npz bit flipped": replace(FILES[1], lambda data: data[:400] + bytes([data[400] ^ 4]) + data[401:]),
    "npz an array": replace(FILES[1], plain_array),
    "npz pickled": npz(lambda arrays: arrays.update({"steps.rest": np.array([{}], object)})),
    "array lost": npz(lambda arrays: arrays.pop("steps.projections")),
    "state lost": npz(lambda arrays: arrays.pop("steps.next_state.hidden.0")),
    "row lost": npz(lambda arrays: arrays.update({"steps.rest": arrays["steps.rest"][1:]})),
    "position lost": npz(lambda arrays: arrays.update({"encoder.memory.keys": arrays["encoder.memory.keys"][1:]})),
    "weight lost": npz(lambda arrays: arrays.update({"steps.alignment": arrays["steps.alignment"][1:]})),
    "array a number": npz(lambda arrays: arrays.update({"steps.rest": np.float32(1)})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_golden_data_is_refused(toy_golden, damage):
    files = toy_golden.files()
    DAMAGE[damage](files)
    with pytest.raises(BundleError, match="the golden data"):
        Golden.load(files)


def test_bundle_without_golden_data_is_refused():
    def read(name: str) -> bytes:
        raise BundleError(f"{name} is missing")

    with pytest.raises(BundleError, match=r"golden/golden.json is missing"):
        golden.load(read)


def test_batches_are_complete_and_in_order():
    assert batching.batches(0) == []
    assert [list(batch) for batch in batching.batches(5, 2)] == [[0, 1], [2, 3], [4]]


def test_default_options_are_not_written(toy_golden):
    written = json.loads(toy_golden.files()[golden.FILES[0]])["search"]
    assert sorted(written) == ["beam", "length_penalty", "max_length", "n_best"]
    config = dataclasses.replace(toy_golden.search, no_repeat_ngram=3, suppress=(5, 7))
    files = dataclasses.replace(toy_golden, search=config).files()
    assert json.loads(files[golden.FILES[0]])["search"]["suppress"] == [5, 7]
    assert golden.Golden.load(files).search == config
