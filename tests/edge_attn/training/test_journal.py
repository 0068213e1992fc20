"""A run reports its data, its validations with translations, and its end, and logs them to log.csv."""

from __future__ import annotations

import csv
import os
import signal
import sys

import pytest
import torch
from tiny_runs import a_run, digest

from edge_attn.errors import MissingExtraError, NotTestedError, UsageError
from edge_attn.training.device import choose_compute, choose_device
from edge_attn.training.run import train
from edge_attn.training.trainer import Trainer
from edge_attn.training.translations import ValidationSentences


def rows(out):
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_start_table_names_data_model_and_device(tiny, out, capfd):
    path = tiny(updates=2)
    path.write_text(path.read_text().replace('valid = "valid.tsv"', 'valid = "valid.tsv"\nmax_tokens = 5'))
    train(path, out, threads=1, device="cpu")
    table = dict(line.split(maxsplit=1) for line in capfd.readouterr().err.splitlines()[:6])
    assert "train.tsv: 200 pairs" in table["data"]
    assert "left out (more than 5 tokens on a side)" in table["data"]
    assert table["vocabulary"] == "words, source 10, target 10"
    assert "attention additive, 1,436 weights" in table["model"]
    assert table["device"] == "cpu, 1 thread, fp32"
    assert "new, 2 updates of 60 target tokens" in table["run"]


def test_validation_has_scores_and_translations(tiny, out, capfd):
    train(tiny(updates=4), out)
    text = capfd.readouterr().err
    assert "validation loss" in text
    assert "BLEU" in text
    assert text.count("      model      ") == text.count("      reference  ") == 3
    (row,) = rows(out)
    assert row["update"] == "4"
    assert float(row["validation_loss"]) > 0
    assert float(row["training_loss"]) > 0
    assert 0 <= float(row["chrf"]) <= 100
    assert row["best"] == "1"


def test_scores_are_those_of_the_translations(tiny, out):
    from sacrebleu import corpus_bleu, corpus_chrf

    run, _ = a_run(tiny(), out)
    pairs = [("a b", "b a"), ("a b", "never used: the source is there twice"), ("c d e", "e d c"), ("f", "f")]
    sentences = ValidationSentences.choose(run.text, pairs, 10, 100)
    assert [source for source, _ in sentences.pairs] == ["a b", "c d e", "f"]
    run.model.eval()
    scores = sentences.score(run.model, run.text, 20)
    assert scores is not None
    references = [[target for _, target in sentences.pairs]]
    assert scores.bleu == pytest.approx(corpus_bleu(scores.translations, references).score)
    assert scores.chrf == pytest.approx(corpus_chrf(scores.translations, references).score, abs=1e-6)


def test_weights_do_not_depend_on_the_scored_sentences(tiny, out, tmp_path):
    train(tiny(), out)
    train(tiny("scored_sentences = 0\n"), tmp_path / "none")
    assert digest(out) == digest(tmp_path / "none")
    assert {row["bleu"] for row in rows(tmp_path / "none")} == {""}


@pytest.mark.parametrize(
    ("more", "updates", "expected"),
    [("", 4, "complete: 4 updates"), ("patience = 1\n", 400, "stopped early at update")],
)
def test_end_and_next_command_are_reported(tiny, out, capfd, more, updates, expected):
    path = tiny(more, updates=updates)
    path.write_text(path.read_text().replace("learning_rate = 0.01", "learning_rate = 0.5"))
    train(path, out)
    *_, end, following = capfd.readouterr().err.splitlines()
    assert end.startswith(expected)
    assert following == f"Next: edge-attn export {out} --out {out}.zip"


def test_complete_run_reports_that_it_is_complete(tiny, out, capfd):
    train(tiny(), out)
    before = digest(out)
    capfd.readouterr()
    train(tiny(), out)
    text = capfd.readouterr().err
    assert "resumes at update 10 of 10 updates" in text
    assert "complete: 10 updates" in text
    assert digest(out) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_the_state_between_updates(tiny, out, tmp_path, capfd, monkeypatch, number):
    train(tiny(), out)
    stopped, original = tmp_path / "stopped", Trainer.update

    def update(self, batch):
        if self.progress.update == 5:
            os.kill(os.getpid(), number)
        return original(self, batch)

    def stop(*_):
        raise KeyboardInterrupt

    former = signal.signal(number, stop)
    try:
        monkeypatch.setattr(Trainer, "update", update)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), stopped)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, former)
    assert f"stopped at update 6 by {number.name}; the state is saved" in capfd.readouterr().err
    monkeypatch.undo()
    train(tiny(), stopped)
    assert "resumes at update 6 of 10" in capfd.readouterr().err
    assert digest(stopped) == digest(out)
    assert [row["update"] for row in rows(stopped)] == [row["update"] for row in rows(out)]


def test_tensorboard_is_an_extra(tiny, out, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"edge-attn\[tensorboard\]"):
        train(tiny(), out, tensorboard=tmp_path / "events")


def test_tensorboard_has_the_figures(tiny, out, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def flush(self):
            pass

        def close(self):
            written.append("closed")

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(tiny(updates=4), out, tensorboard=tmp_path / "events")
    assert written[0] == str(tmp_path / "events")
    assert {("validation_loss", 4), ("bleu", 4), ("chrf", 4), ("training_loss", 4), ("learning_rate", 4)} == set(
        written[1:-1]
    )
    assert written[-1] == "closed"


# ---- device and precision


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_lower_precision_learns_and_resumes(tiny, out, tmp_path, monkeypatch, compute):
    train(tiny(f'compute = "{compute}"\n', updates=30), out, device="cpu")
    losses = [float(row["validation_loss"]) for row in rows(out)]
    assert losses[-1] < losses[0]
    stopped, original = tmp_path / "stopped", Trainer.update

    def update(self, batch):
        if self.progress.update == 20:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(f'compute = "{compute}"\n', updates=30), stopped, device="cpu")
    monkeypatch.undo()
    train(tiny(f'compute = "{compute}"\n', updates=30), stopped, device="cpu")
    assert digest(stopped) == digest(out)


def test_auto_device_is_the_gpu_of_the_process(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(NotTestedError, match="has no CUDA GPU; use --device cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(NotTestedError, match="process 2 has no GPU"):
        choose_device("cuda")
    with pytest.raises(UsageError, match="`device` must be one of auto, cpu, cuda"):
        choose_device("gpu")


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_precision_is_that_of_the_device(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert choose_compute("auto", torch.device("cuda", 0)) == expected
    assert choose_compute("auto", torch.device("cpu")) == "fp32"
    assert choose_compute("bf16", torch.device("cpu")) == "bf16"
