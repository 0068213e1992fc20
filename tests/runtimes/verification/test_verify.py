"""Tests of verify: a good bundle passes, and bounds, levels and references are the requested ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: a device needs none")

import torch
from verify_reports import failing, planted, statuses

from edge_attn import checkpoint
from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.config.training import TextConfig
from edge_attn.errors import BundleError, InputError, UsageError
from edge_attn.runtimes.tasks.encoder_decoder import TranslationTask
from edge_attn.runtimes.verification.verify import verify
from edge_attn.text.pipeline import Text

torch.set_num_threads(1)


def test_good_bundle_passes_verification(toy_bundle, toy_golden):
    report = verify(toy_bundle, options=RuntimeOptions(threads=1))
    assert (report.verdict, report.exit_code) == ("holds", 0)
    assert statuses(report) == dict.fromkeys(("L1", "L2", "L3", "L5"), "holds")
    assert report.sentences == len(toy_golden.sentences)
    assert report.provider == "CPUExecutionProvider"
    assert not any(level.mismatches for level in report.levels)
    text = str(report)
    assert "L0" not in text
    assert "L4" not in text
    assert text.endswith("parity holds")
    names = {f"{f.level}.{f.name.partition(' ')[0]}" for level in report.levels for f in level.measurements}
    assert names >= {"L1.max_abs", "L1.p99", "L1.relative", "L1.cosine", "L1.alignment", "L1.state"}
    assert names >= {"L2.log_prob", "L2.rest", "L2.projection", "L2.kl", "L2.top1"}
    assert names >= {
        "L3.tokens",
        "L3.n_best",
        "L3.chrf",
        "L3.excused",
        "L3.log_prob",
        "L3.score",
        "L3.alignment",
        "L3.text",
    }
    assert names >= {"L5.rerun", "L5.tokens", "L5.excused"}


# ---- bounds, levels, references


def test_looser_or_unknown_manifest_bound_is_refused(opened, tmp_path):
    path = planted(opened, tmp_path / "a.zip", lambda files: None, tolerances={"L1.max_abs": 1.0})
    with pytest.raises(BundleError, match="looser than the ceiling"):
        verify(path)
    path = planted(opened, tmp_path / "b.zip", lambda files: None, tolerances={"L1.maximum": 0.0})
    with pytest.raises(BundleError, match=r"'L1.maximum' is not a bound"):
        verify(path)


def test_stricter_manifest_bound_is_used(opened, tmp_path):
    path = planted(opened, tmp_path / "a.zip", lambda files: None, tolerances={"L2.log_prob": 1e-9})
    assert failing(verify(path, levels=["L2"])) == {"L2.log_prob"}


def test_override_is_used_and_reported(opened, tmp_path):
    path = planted(opened, tmp_path / "a.zip", lambda files: None, tolerances={"L2.log_prob": 1e-9})
    report = verify(path, levels=["L2"], overrides={"L2.log_prob": 0.25})
    assert report.exit_code == 0
    assert "override: L2.log_prob = 0.25" in str(report)
    assert json.loads(report.json())["overrides"] == {"L2.log_prob": 0.25}


def test_unknown_arguments_are_refused(toy_bundle):
    with pytest.raises(UsageError, match=r"'L2.x': not a bound"):
        verify(toy_bundle, overrides={"L2.x": 1.0})
    with pytest.raises(UsageError, match="unknown level 'L6'; known: L1, L2, L3, L5"):
        verify(toy_bundle, levels=["L6"])
    with pytest.raises(UsageError, match="unknown runtime 'tvm'"):
        verify(toy_bundle, "tvm")
    with pytest.raises(UsageError, match="`sentences` needs `reference`"):
        verify(toy_bundle, sentences=Path("lines"))


def test_only_requested_levels_run(toy_bundle):
    report = verify(toy_bundle, levels=["L1"])
    assert statuses(report) == {**dict.fromkeys(("L2", "L3", "L5"), "not requested"), "L1": "holds"}
    assert report.exit_code == 0


@pytest.mark.parametrize("requested", [["L4"], ["L1", "L4"], ["L0"]])
def test_requested_level_that_cannot_run_is_not_tested(toy_bundle, requested):
    report = verify(toy_bundle, levels=requested)
    assert statuses(report)[requested[-1]] == "not tested"
    assert (report.verdict, report.exit_code) == ("not tested", 3)
    assert "not tested (verify runs L1, L2, L3, L5)" in str(report)
    assert str(report).endswith("parity NOT TESTED")


def test_bundle_matches_its_checkpoint(toy_bundle, toy_checkpoint, tmp_path):
    lines = tmp_path / "lines"
    lines.write_text("the cat sees a small dog\nking\nthe pelican sees a dog\n" + "a red cat and " * 20 + "\n")
    report = verify(toy_bundle, reference=toy_checkpoint, sentences=lines, options=RuntimeOptions(threads=1))
    assert report.verdict == "holds"
    assert report.sentences == 4
    assert report.against == str(toy_checkpoint)
    assert str(toy_checkpoint) in str(report)


def test_other_checkpoint_fails_on_the_golden_sentences(toy_bundle, toy_checkpoint, tmp_path):
    model, text, config = checkpoint.load(toy_checkpoint)
    with torch.no_grad():
        model.combine.weight[3, 4] += 0.01
    checkpoint.save_config(tmp_path, config, text)
    checkpoint.save_model(tmp_path, model, "fp32")
    report = verify(toy_bundle, reference=tmp_path, options=RuntimeOptions(threads=1))
    assert report.exit_code == 1
    assert report.sentences > 60
    assert "L2.log_prob" in failing(report)


@pytest.fixture
def records_nothing(monkeypatch):
    """Fail the test if results of the live model are recorded, which takes a minute."""
    monkeypatch.setattr(TranslationTask, "record", lambda *_: pytest.fail("results were recorded"))


@pytest.mark.usefixtures("records_nothing")
def test_checkpoint_of_another_model_is_refused(toy_bundle, toy_checkpoint, tmp_path):
    _, text, config = checkpoint.load(toy_checkpoint)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="none"))
    checkpoint.save_config(tmp_path, config, text)
    checkpoint.save_model(tmp_path, checkpoint.make_model(config, text), "fp32")
    with pytest.raises(
        InputError, match=r"another model .*: its encoder has no memory.keys, that of the bundle memory.keys "
    ):
        verify(toy_bundle, reference=tmp_path)


@pytest.mark.usefixtures("records_nothing")
def test_checkpoint_of_a_larger_vocabulary_is_refused(toy_bundle, toy_checkpoint, tmp_path):
    _, _, config = checkpoint.load(toy_checkpoint)
    words = " ".join(f"w{i}" for i in range(60))
    text = Text.train(TextConfig("words", 100, 100), [(words, words)])
    checkpoint.save_config(tmp_path, config, text)
    checkpoint.save_model(tmp_path, checkpoint.make_model(config, text), "fp32")
    lines = tmp_path / "lines"
    lines.write_text(words[:30])
    with pytest.raises(InputError, match=r"encoder has source .* of 0 to \d+, that of the bundle source .* of 0 to 30"):
        verify(toy_bundle, reference=tmp_path, sentences=lines)


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), (b" \n", "is empty"), (b"\xff", "UTF-8")])
def test_unreadable_sentences_are_refused(toy_bundle, toy_checkpoint, tmp_path, content, message):
    lines = tmp_path / "lines"
    if content is not None:
        lines.write_bytes(content)
    with pytest.raises(InputError, match=message):
        verify(toy_bundle, reference=toy_checkpoint, sentences=lines)


def test_verify_needs_torch_only_for_a_reference(run_edge_attn, toy_bundle, toy_checkpoint):
    absent = ("torch", "onnx", "safetensors")
    assert run_edge_attn("verify", toy_bundle, "--level", "L2", "--threads", 1, absent=absent).returncode == 0
    process = run_edge_attn("verify", toy_bundle, "--reference", toy_checkpoint, absent=absent)
    assert process.returncode == 3
    assert b"torch is not installed; run: pip install 'edge-attn[export]'" in process.stderr


def test_folded_memory_of_equal_shape_is_distinguished(tmp_path):
    """Luong's layout with a decoder as wide as the encoder's output: folded and unfolded memory have the same shape."""
    from edge_attn import checkpoint
    from edge_attn.config.training import Config, DataConfig, TextConfig, TrainingConfig
    from edge_attn.export.pipeline import export

    pairs = [(" ".join(f"w{i} w{i + 1} w{i + 2}".split()), f"v{i} v{i + 1}") for i in range(80)]
    model = Seq2SeqConfig(embedding=8, encoder_hidden=4, decoder_hidden=8, attention_size=4, attend="after")
    config = Config(
        DataConfig("none.tsv", holdout=1, max_tokens=12), TextConfig("words", 99, 99), model, TrainingConfig()
    )
    text = Text.train(TextConfig("words", 99, 99), pairs)
    torch.manual_seed(1)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    checkpoint.save_config(folder, config, text)
    checkpoint.save_model(folder, checkpoint.make_model(config, text), "fp32")
    checkpoint.save_samples(folder, [source for source, _ in pairs])
    export(folder, tmp_path / "bundle.zip")
    report = verify(tmp_path / "bundle.zip", reference=folder)
    assert report.verdict == "holds", str(report)
