"""A run learns, depends only on its configuration and data, and reports errors."""

from __future__ import annotations

import dataclasses
import io
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import FILES, a_run, digest, progress, reversals, write_pairs

from edge_attn import checkpoint
from edge_attn.config.training import TrainingConfig, read_config
from edge_attn.errors import CheckpointError, ConfigError, InputError, UsageError
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.text.corpus import read_pairs
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import BOS, EOS
from edge_attn.training.data import choose_samples
from edge_attn.training.journal import Journal
from edge_attn.training.run import train
from edge_attn.training.trainer import Trainer, learning_rate
from edge_attn.training.translations import ValidationSentences

# ---- checkpoint of a run


def test_run_writes_a_complete_checkpoint(tiny, out):
    train(tiny(), out)
    model, text, config = checkpoint.load(out)
    assert isinstance(model, Seq2Seq)
    assert config == read_config(tiny())
    assert {path.name for path in out.iterdir()} == FILES
    assert {path.name for path in (out / "text").iterdir()} == {
        "text.json",
        "source.json",
        "target.json",
        "samples.txt",
    }
    sources = [source for source, _ in read_pairs(tiny().parent / "valid.tsv")]
    samples = checkpoint.load_samples(out)
    assert samples == choose_samples(text, sources)
    assert len(samples) == len(set(sources))


def test_weights_depend_on_the_seed_only(tiny, out, tmp_path):
    train(tiny(), out)
    train(tiny(), tmp_path / "again")
    train(tiny("seed = 2\n"), tmp_path / "other")
    assert digest(out) == digest(tmp_path / "again") != digest(tmp_path / "other")


def test_finished_run_is_unchanged(tiny, out):
    train(tiny(), out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    train(tiny(), out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_run_killed_before_its_configuration_was_written_starts_again(tiny, out):
    for name in (".config.json.partial", ".config.json.edge-attn.12345678.partial"):  # of 0.1.0, and of this version
        (out / "text").mkdir(parents=True)
        (out / name).write_text("{")
        train(tiny(), out)
        assert {path.name for path in out.iterdir()} == FILES
        shutil.rmtree(out)


def test_missing_samples_are_written_again(tiny, out):
    train(tiny(), out)
    samples = checkpoint.load_samples(out)
    (out / "text" / "samples.txt").unlink()
    train(tiny(), out)
    assert checkpoint.load_samples(out) == samples


def test_samples_respect_max_tokens(tiny, out):
    train(tiny(), out)
    longest = max(len(sample.split()) for sample in checkpoint.load_samples(out))
    assert longest == 5
    path = tiny()
    path.write_text(path.read_text().replace("[text]", "max_tokens = 4\n[text]"))
    train(path, out.with_name("short"))
    assert max(len(sample.split()) for sample in checkpoint.load_samples(out.with_name("short"))) == 3  # and eos


def test_held_out_lines_are_the_samples(tiny, out):
    path = tiny()
    path.write_text(path.read_text().replace('valid = "valid.tsv"', "holdout = 30"))
    train(path, out)
    held_out = {source for source, _ in reversals(200, 1)[-30:]}
    assert set(checkpoint.load_samples(out)) == held_out


def test_data_in_another_folder_and_compressed(tiny, out, tmp_path):
    import gzip

    path = tiny()
    (tmp_path / "elsewhere").mkdir()
    for name in ("train.tsv", "valid.tsv"):
        (tmp_path / "elsewhere" / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    plain = tmp_path / "plain"
    train(path, plain)
    path.write_text(path.read_text().replace('.tsv"', '.tsv.gz"'))
    train(path, out, tmp_path / "elsewhere")
    assert digest(out) == digest(plain)


# ---- learning


LEARNS = """
[data]
train = "train.tsv"
valid = "valid.tsv"
[text]
kind = "words"
[model]
embedding = 24
encoder_hidden = 24
decoder_hidden = 48
attention_size = 24
{focus}
[training]
updates = {updates}
warmup = 30
batch_tokens = 192
validate_every = 100
checkpoint_every = {updates}
learning_rate = 0.01
"""


def greedy(model: Seq2Seq, text: Text, sentence: str) -> str:
    ids = text.encode_source(sentence)
    with torch.no_grad():
        memory, state = model.encode(torch.tensor([ids]), torch.tensor([len(ids)]))
        tokens = [BOS]
        while len(tokens) < 20 and tokens[-1] != EOS:
            features, _, state = model.decode(model.embedding(torch.tensor([[tokens[-1]]])), memory, state)
            tokens.append(int(model.logits(features)[0, 0].argmax()))
    return text.target.decode(tokens[1:-1])


@pytest.mark.parametrize(
    ("focus", "updates"),
    [
        ("", 300),
        ('normalizer = "sparsemax"', 300),
        ('focus = "local-p"\nwindow = 2\nattention = "general"', 300),
        ('focus = "hard"\nhard_training = "straight-through"', 300),
        pytest.param('focus = "hard"\nhard_training = "reinforce"', 600, marks=pytest.mark.slow),
    ],
    ids=["soft", "sparsemax", "local-p", "straight-through", "reinforce"],
)
def test_model_learns_to_reverse_unseen_sentences(tmp_path, out, focus, updates):
    train_pairs = reversals(3000, 1)
    held_out = sorted(set(reversals(300, 2)) - set(train_pairs))
    assert len(held_out) > 50
    write_pairs(tmp_path / "train.tsv", train_pairs)
    write_pairs(tmp_path / "valid.tsv", held_out)
    (tmp_path / "run.toml").write_text(LEARNS.format(focus=focus, updates=updates))
    train(tmp_path / "run.toml", out)
    model, text, _ = checkpoint.load(out)
    right = sum(greedy(model, text, source) == target for source, target in held_out)
    assert right >= 0.95 * len(held_out)


def test_loss_is_the_sum_over_real_tokens(tiny, out):
    run, pairs = a_run(tiny(), out)
    run.model.eval()
    with torch.no_grad():
        alone = [run.loss(pairs.batch(np.array([i])), 0.0).item() for i in range(3)]
        together = run.loss(pairs.batch(np.arange(3)), 0.0).item()
        smooth = run.loss(pairs.batch(np.arange(3)), 0.2).item()
    assert together == pytest.approx(sum(alone), rel=1e-5)
    assert smooth != pytest.approx(together, rel=1e-3)


# ---- updates


def test_gradient_is_clipped(tiny, out, monkeypatch):
    run, pairs = a_run(tiny("clip = 0.001\n"), out)
    norms = []

    def step():
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in run.model.parameters())))

    monkeypatch.setattr(run.optimizer, "step", step)
    run.update(pairs.batch(np.arange(8)))
    assert norms == [pytest.approx(0.001, rel=1e-3)]


@given(st.integers(1, 50), st.integers(0, 80))
def test_learning_rate_rises_and_falls(updates, warmup):
    options = TrainingConfig(updates=updates, warmup=warmup, learning_rate=0.5)
    rates = [learning_rate(options, update) for update in range(updates)]
    assert all(0.0 < rate <= 0.5 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if warmup < updates:
        assert max(rates) == pytest.approx(0.5, rel=0.5 if warmup else 1e-9)
        assert learning_rate(options, updates) == 0.0
    else:
        assert rates == [pytest.approx(0.5 * (update + 1) / warmup) for update in range(updates)]


def test_training_stops_after_patience(tiny, out, monkeypatch):
    losses, calls = iter([3.0, 2.0, 2.5, 2.0, 9.0, 1.0]), []

    def validate(self, _):
        calls.append((self.progress.update, self.model.output.weight.detach().half().float()))
        return next(losses)

    monkeypatch.setattr(Trainer, "validate", validate)
    path = tiny("patience = 3\n", updates=100, validate_every=2)
    train(path, out)
    assert [update for update, _ in calls] == [2, 4, 6, 8, 10]
    stored = checkpoint.load(out)[0].output.weight
    train(path, out)  # a second call does not continue
    assert len(calls) == 5
    assert (progress(out)["best"], progress(out)["bad_validations"]) == (2.0, 3)
    assert [torch.equal(stored, weight) for _, weight in calls] == [False, True, False, False, False]


def test_progress_bar_shows_speed_and_loss(tiny, out, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    train(tiny(updates=30), out)
    text = stderr.getvalue()
    assert "30/30 [" in text
    assert "tokens/s" in text
    assert "validation loss" in text
    assert "updates/s" in text


# ---- errors


def test_other_configuration_is_refused(tiny, out):
    train(tiny(), out)
    before = digest(out)
    with pytest.raises(CheckpointError, match="out contains a run of another configuration; choose another `out`"):
        train(tiny("seed = 2\n"), out)
    assert digest(out) == before


def test_updates_may_increase_but_not_decrease(tiny, out):
    train(tiny(updates=6), out)
    before = digest(out)
    with pytest.raises(CheckpointError, match=r"only training.updates may increase"):
        train(tiny(updates=4), out)
    assert digest(out) == before
    train(tiny(updates=20), out)
    assert digest(out) != before
    assert checkpoint.load_config(out).training.updates == 20


def test_foreign_folder_is_refused_and_unchanged(tiny, out):
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="out exists and is not a checkpoint"):
        train(tiny(), out)
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


def test_unwritable_output_is_refused(tiny, tmp_path):
    with pytest.raises(InputError, match=r"train\.tsv exists and is not a checkpoint"):
        train(tiny(), tmp_path / "train.tsv")
    with pytest.raises(InputError, match=r"train\.tsv/out cannot be written: Not a directory"):
        train(tiny(), tmp_path / "train.tsv" / "out")


def test_bad_data_is_refused_before_writing(tiny, out, tmp_path):
    (tmp_path / "valid.tsv").write_text("a\tb\nc\n")
    with pytest.raises(InputError, match=r"valid\.tsv, line 2"):
        train(tiny(), out)
    path = tiny()
    path.write_text(path.read_text().replace('valid = "valid.tsv"', "holdout = 200"))
    with pytest.raises(InputError, match=r"train\.tsv has 200 pairs, data\.holdout is 200"):
        train(path, out)
    assert not out.exists()


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_refused(tiny, out, threads):
    with pytest.raises(UsageError, match=f"`threads` must be at least 1, got {threads}"):
        train(tiny(), out, threads=threads)


def test_nan_gradient_stops_the_run(tiny, out):
    run, pairs = a_run(tiny(), out)
    with torch.no_grad():
        run.model.output.weight[4, 0] = math.nan
    before = [p.clone() for p in run.model.parameters()]
    with pytest.raises(InputError, match=r"the gradient is nan at update 0; lower training.learning_rate"):
        run.update(pairs.batch(np.arange(4)))
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(before, run.model.parameters(), strict=True))
    with pytest.raises(InputError, match=r"the validation loss is nan at update 0; lower training.learning_rate"):
        run.validate(pairs)


def test_too_few_batches_are_refused(tiny, out):
    run, pairs = a_run(tiny(), out, world=99)
    few = dataclasses.replace(pairs, source=pairs.source[:9], target=pairs.target[:9])
    journal = Journal(out, 10, 0, visible=False)
    with pytest.raises(InputError, match="too few for 99 processes"):
        run.fit(few, pairs, ValidationSentences([]), journal)


def test_impossible_model_writes_nothing(tmp_path):
    """The corrected configuration can then use the same checkpoint folder."""
    (tmp_path / "data.tsv").write_text("".join(f"a{i} b{i}\tc{i}\n" for i in range(20)))
    config = tmp_path / "run.toml"
    config.write_text("[data]\ntrain = 'data.tsv'\nholdout = 2\n[model]\nattention = 'multi-head'\nheads = 5\n")
    with pytest.raises(ConfigError, match=r"run\.toml: model: heads must divide attention_size"):
        train(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
