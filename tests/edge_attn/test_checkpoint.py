"""A checkpoint is loaded as it was saved, or is refused with an error that names the file."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: a device needs none")

import torch
from safetensors.torch import load_file, save_file

from edge_attn import checkpoint
from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.training import Config, DataConfig, TextConfig, TrainingConfig
from edge_attn.errors import CheckpointError, InputError
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.text.pipeline import Text

TEXT = Text.train(TextConfig("words", 20, 20), [("a b c", "x y")])
SMALL = Seq2SeqConfig(
    embedding=6, encoder_hidden=4, decoder_hidden=8, attention_size=5, tied_output=True, input_feeding=True
)


def a_config(**model) -> Config:
    return Config(DataConfig("train.tsv", holdout=1), model=dataclasses.replace(SMALL, **model))


def a_model(config: Config, seed: int = 1) -> Seq2Seq:
    torch.manual_seed(seed)
    return checkpoint.make_model(config, TEXT).eval()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a checkpoint in fp32."""
    checkpoint.save_config(tmp_path / "run", a_config(), TEXT)
    checkpoint.save_model(tmp_path / "run", a_model(a_config()), "fp32")
    return tmp_path / "run"


def test_saved_checkpoint_is_loaded(folder):
    model, text, config = checkpoint.load(folder)
    assert config == a_config()
    assert text.files() == TEXT.files()
    assert not model.training
    expected = a_model(config).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.output.weight is model.embedding.weight
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "text"]


def test_former_name_of_a_key_is_loaded(tmp_path):
    config = a_config(normalizer="sparsemax")
    checkpoint.save_config(tmp_path, config, TEXT)
    path = tmp_path / "config.json"
    content = path.read_text(encoding="utf-8")
    former = content.replace('"normalizer"', '"normaliser"')  # codespell:ignore normaliser
    path.write_text(former, encoding="utf-8")
    assert path.read_text(encoding="utf-8") != content
    assert checkpoint.load_config(tmp_path) == config


def test_shared_weight_is_stored_once(folder):
    assert "embedding.weight" in load_file(folder / "model.safetensors")
    assert "output.weight" not in load_file(folder / "model.safetensors")


def test_fp16_weights_are_loaded_as_fp32(folder):
    checkpoint.save_model(folder, a_model(a_config()), "fp16")
    model, _, _ = checkpoint.load(folder)
    expected = a_model(a_config()).half().float().state_dict()
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("value", "storage", "sentence"),
    [
        (
            1e6,
            "fp16",
            r"embedding.weight reaches 1e\+06, the largest fp16 number is 65504; train with training.storage = .fp32",
        ),
        (math.nan, "fp32", "embedding.weight contains NaN or infinity"),
        (math.inf, "fp16", "embedding.weight contains NaN or infinity"),
    ],
)
def test_weights_that_cannot_be_stored_are_refused(folder, value, storage, sentence):
    before = (folder / "model.safetensors").read_bytes()
    model = a_model(a_config())
    with torch.no_grad():
        model.embedding.weight[5, 2] = value
    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.save_model(folder, model, storage)
    assert (folder / "model.safetensors").read_bytes() == before


def weights(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def written(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def edited(**values):
    def damage(folder):
        content = json.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps({**content, **values}))

    return damage


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def removed(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (removed("config.json"), "run is not a checkpoint: it has no config.json"),
        (removed("model.safetensors"), "model.safetensors cannot be read"),
        (removed("text/text.json"), "text/text.json cannot be read: No such file"),
        (removed("text/source.json"), "text/source.json cannot be read: No such file"),
        (written("text/source.json", b"[]"), "text/source.json must list <pad>"),
        (written("config.json", b"{"), "config.json is not JSON"),
        (written("config.json", b"[" * 100_000), "config.json is nested more than 32 deep"),
        (written("config.json", b"\xff\xff"), "config.json is not JSON"),
        (written("config.json", b"[]"), "config.json is not a checkpoint's configuration: it has no format"),
        (written("config.json", b"{}"), "config.json is not a checkpoint's configuration: it has no format"),
        (edited(format=3), "config.json has format 3, this version reads up to 2; install a newer edge-attn"),
        (edited(format="1"), "it has no format number"),
        (edited(format=True), "it has no format number"),
        (edited(color="red"), "config.json: unknown key 'color'"),
        (edited(data={"train": "x"}), "either valid or holdout"),
        (edited(model={"embedding": 7}), r"model.safetensors does not fit .*config.json: \S+ has shape"),
        (edited(model={"embedding": 2**20}), r"model.safetensors does not fit .*config.json: \S+ has shape"),
        (edited(model={"embedding": 10**12}), "config.json: model: embedding must be at most 1048576, got 10000000"),
        (edited(model={"encoder_layers": 10**9}), "config.json: model: encoder_layers must be at most 64, got 10000"),
        (edited(model={"decoder_hidden": 2**63}), "decoder_hidden: the number 9223372036854775808 is out of"),
        (cut("model.safetensors"), "model.safetensors cannot be read"),
        (written("model.safetensors", b""), "model.safetensors cannot be read"),
        (written("model.safetensors", b"\xff" * 99), "model.safetensors cannot be read"),
        (weights(lambda t: t.pop("combine.bias")), r"combine.bias has shape none, expected \(6,\)"),
        (weights(lambda t: t.update(more=torch.zeros(2))), r"more has shape \(2,\), expected none"),
        (
            weights(lambda t: t.update({"combine.bias": torch.zeros(1)})),
            r"combine.bias has shape \(1,\), expected \(6,\)",
        ),
        (weights(lambda t: t["combine.bias"].fill_(math.nan)), "combine.bias is not fp32 or fp16, or contains NaN"),
        (weights(lambda t: t.update({"combine.bias": torch.zeros(6, dtype=torch.int64)})), "is not fp32 or fp16"),
    ],
)
def test_damaged_checkpoint_is_refused(folder, damage, sentence):
    damage(folder)
    with pytest.raises(InputError, match=sentence) as caught:
        checkpoint.load(folder)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="none is not a checkpoint"):
        checkpoint.load(tmp_path / "none")


def test_failed_write_leaves_the_previous_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run/text/text.json cannot be written: Not a directory"):
        checkpoint.save_config(tmp_path / "file" / "run", a_config(), TEXT)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    checkpoint_file = tmp_path / "model.safetensors"
    checkpoint_file.write_bytes(b"the last")
    with pytest.raises(InputError, match=r"model\.safetensors cannot be written: No space left on device"):
        checkpoint.save_model(tmp_path, a_model(a_config()), "fp32")
    assert checkpoint_file.read_bytes() == b"the last"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "model.safetensors"]


def test_samples_are_loaded_and_may_be_absent(tmp_path):
    assert checkpoint.load_samples(tmp_path) == []
    checkpoint.save_samples(tmp_path, ["a b", "é\u2028\u0085 ☃"])
    assert checkpoint.load_samples(tmp_path) == ["a b", "é\u2028\u0085 ☃"]
    assert (tmp_path / "text" / "samples.txt").read_text(encoding="utf-8").endswith("☃\n")
    (tmp_path / "text" / "samples.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(CheckpointError, match=r"samples.txt is not UTF-8"):
        checkpoint.load_samples(tmp_path)


def test_float_options_are_loaded_exactly(tmp_path):
    config = dataclasses.replace(a_config(), training=TrainingConfig(learning_rate=1e-7, clip=0.1 + 0.2))
    checkpoint.save_config(tmp_path, config, TEXT)
    assert checkpoint.load_config(tmp_path) == config
