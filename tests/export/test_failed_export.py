"""Tests of failing exports: nothing is written. A successful one prints one line."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

import edge_attn
from edge_attn import checkpoint
from edge_attn.bundle.bundle import Bundle
from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.training import Config, DataConfig, TextConfig, TrainingConfig
from edge_attn.errors import CheckpointError, ExportError, InputError
from edge_attn.export import checks, pipeline
from edge_attn.export.pipeline import export, graph_model
from edge_attn.models.graphs import encoder_decoder_graphs
from edge_attn.runtimes.tasks.encoder_decoder import TranslationTask
from edge_attn.text.pipeline import Text

torch.set_num_threads(1)


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Write a checkpoint that exports quickly."""
    folder = tmp_path_factory.mktemp("tiny")
    words = "the a cat dog sees likes small red and"
    text = Text.train(TextConfig("words", 50, 50), [(words, words)])
    sizes = {"embedding": 8, "encoder_hidden": 4, "decoder_hidden": 8, "attention_size": 4}
    data = DataConfig("train.tsv", "valid.tsv", max_tokens=9)
    config = Config(data, TextConfig("words"), Seq2SeqConfig(attention="none", **sizes), TrainingConfig())
    torch.manual_seed(1)
    checkpoint.save_config(folder, config, text)
    checkpoint.save_model(folder, checkpoint.make_model(config, text), "fp32")
    checkpoint.save_samples(folder, ["the cat sees a dog and likes the red cat", "a small cat"])
    return folder


@pytest.fixture(scope="module")
def traced(tiny) -> dict[str, tuple[onnx.ModelProto, float]]:
    model, _, _ = checkpoint.load(tiny)
    return {name: graph_model(name, graph, graph.spec) for name, graph in encoder_decoder_graphs(model, 16).items()}


@pytest.fixture
def without_tracing(monkeypatch, traced) -> None:
    """Reuse the traced graphs of `tiny`: these tests fail at a later step."""
    monkeypatch.setattr(pipeline, "graph_model", lambda name, *_, **__: traced[name])


def test_existing_file_is_not_replaced(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "load", None)  # the check comes before any work
    (tmp_path / "bundle.zip").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"bundle.zip exists; .* `force`"):
        export(tiny, tmp_path / "bundle.zip")
    with pytest.raises(InputError, match="is not a bundle, so `force` does not replace it"):
        export(tiny, tmp_path / "bundle.zip", force=True)
    assert (tmp_path / "bundle.zip").read_bytes() == b"mine"


@pytest.mark.slow
def test_force_replaces_a_bundle(tiny, bundle, tmp_path, without_tracing):
    shutil.copytree(bundle, tmp_path / "bundle")
    export(tiny, tmp_path / "bundle", force=True)
    assert Bundle.open(tmp_path / "bundle").manifest.provenance["parameters"] < 3000
    assert file_names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("candidates", [1, 0, -3])
def test_too_few_candidates_fail(tiny, tmp_path, candidates):
    with pytest.raises(InputError, match="`candidates` must be at least 2"):
        export(tiny, tmp_path / "bundle", candidates=candidates)


def test_non_finite_weight_fails(toy_checkpoint, tmp_path):
    shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "model.safetensors"
    weights = load_file(path)
    weights["combine.weight"][0, 0] = float("nan")
    path.unlink()
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"combine.weight is not .* NaN or infinity"):
        export(tmp_path / "checkpoint", tmp_path / "bundle")
    assert file_names(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("check", ["structure", "agreement"])
def test_failed_check_fails_the_export(tiny, tmp_path, monkeypatch, check):
    def fail(*_: object) -> None:
        raise ExportError("no")

    monkeypatch.setattr(checks, check, fail)
    with pytest.raises(ExportError) as failed:
        export(tiny, tmp_path / "bundle")
    assert failed.value.exit_code == 4
    assert not file_names(tmp_path)


@pytest.fixture
def shifted_projections(monkeypatch, without_tracing) -> None:
    """Record golden data that the exported graphs do not match."""
    record = TranslationTask.record

    def shifted(task, *arguments):
        golden = record(task, *arguments)
        arrays = {**golden.arrays, "steps.projections": golden.arrays["steps.projections"] + 0.01}
        return dataclasses.replace(golden, arrays=arrays)

    monkeypatch.setattr(TranslationTask, "record", shifted)


def test_bundle_that_fails_verification_is_not_written(tiny, tmp_path, shifted_projections):
    with pytest.raises(
        edge_attn.errors.ParityError,
        match=r"L2 projection is 0.01, .* \(sentence 0, step 0\); 0 other",
    ) as failed:
        export(tiny, tmp_path / "bundle")
    assert failed.value.exit_code == 1
    assert not file_names(tmp_path)


def test_override_exports_and_is_recorded(tiny, tmp_path, shifted_projections, edge_attn_cli):
    out = tmp_path / "bundle"
    result = edge_attn_cli("export", tiny, "--out", out, "--override", "L2.projection=0.02")
    assert "override: L2.projection = 0.02" in result.stdout
    assert Bundle.open(out).manifest.verification["overrides"] == {"L2.projection": 0.02}
    result = edge_attn_cli("export", tiny, "--out", out, "--force", "--override", "L2.projection=0.005", code=1)
    assert "L2 projection is 0.01, at most 0.005 is allowed" in result.stderr
    assert Bundle.open(out).manifest.verification["overrides"] == {"L2.projection": 0.02}


@pytest.mark.parametrize("override", ["L2.projections=1", "L2.projection=-1", "L2.projection=nan", "L2.projection"])
def test_override_that_is_no_bound_is_a_usage_error(tmp_path, edge_attn_cli, override):
    edge_attn_cli(
        "export", tmp_path / "none", "--out", tmp_path / "b", "--override", override, code=2, error="--override"
    )


def test_unreadable_sentences_fail(tiny, tmp_path, without_tracing):
    with pytest.raises(InputError, match="nowhere cannot be read"):
        export(tiny, tmp_path / "bundle", sentences=tmp_path / "nowhere")
    assert not file_names(tmp_path)


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_full_disk_leaves_nothing(tiny, tmp_path, monkeypatch, without_tracing, name):
    real_open = Path.open

    def full(self: Path, mode: str = "r", *rest: object, **options: object):
        if "w" in mode and tmp_path in self.parents and "text" not in self.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_open(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=f"{name} cannot be written: No space left on device"):
        export(tiny, tmp_path / name)
    assert not file_names(tmp_path)


@pytest.mark.slow
def test_killed_export_leaves_no_bundle_and_next_succeeds(tiny, tmp_path, without_tracing):
    """Kill the process before it renames the complete bundle; the remaining files are not at --out."""
    code = (
        "import pathlib, sys, time\n"
        "def stop(self, other):\n    print('now', flush=True); time.sleep(60)\n"
        "pathlib.Path.rename = stop\n"
        "from edge_attn.export.pipeline import export\n"
        "export(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
    )
    out = tmp_path / "bundle"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code, tiny, out], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    assert not out.exists()
    partial, lock = file_names(tmp_path)
    assert re.fullmatch(r"\.bundle\.edge-attn\.[0-9a-f]{8}\.partial", partial)
    assert lock == ".bundle.edge-attn.lock"
    export(tiny, out)
    assert file_names(tmp_path) == ["bundle"]
    assert Bundle.open(out).manifest.verification


@pytest.mark.slow
def test_command_prints_one_line(tiny, tmp_path, run_edge_attn):
    done = run_edge_attn("export", tiny, "--out", tmp_path / "bundle.zip")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1
    assert b"2 graphs, L1 holds, L2 holds, L3 holds, L5 holds on CPUExecutionProvider" in done.stdout
