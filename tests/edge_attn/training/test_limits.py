"""A model or a batch of a size that cannot be trained is refused before anything is written."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed: a device needs none")

import torch

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.training import Config, DataConfig, TrainingConfig
from edge_attn.errors import ConfigError
from edge_attn.system_memory import SystemMemory
from edge_attn.training import limits

SMALL = Seq2SeqConfig(embedding=6, encoder_hidden=4, decoder_hidden=8, attention_size=5)
CPU = torch.device("cpu")


def config(model: Seq2SeqConfig = SMALL, **training: int) -> Config:
    return Config(DataConfig("train.tsv", holdout=1), model=model, training=TrainingConfig(**training))


def free_memory(monkeypatch, available: int) -> None:
    monkeypatch.setattr(limits, "system_memory", lambda: SystemMemory(available, available, 0, False))


def test_memory_of_training_is_sixteen_bytes_a_weight(monkeypatch):
    weights = sum(p.numel() for p in limits.Seq2Seq(SMALL, 20, 30).parameters())
    free_memory(monkeypatch, 16 * weights)
    limits.check_memory(config(), 20, 30, CPU)
    free_memory(monkeypatch, 16 * weights - 1)
    with pytest.raises(ConfigError, match=rf"^{weights:,} weights need 0.0 GB of memory for training"):
        limits.check_memory(config(), 20, 30, CPU)
    limits.check_memory(config(), 20, 30, torch.device("cuda"))  # which has its own memory for the rest


def test_model_larger_than_this_machine_is_refused():
    large = Seq2SeqConfig(embedding=2**20, encoder_hidden=2**20, decoder_hidden=2**20)
    with pytest.raises(ConfigError, match=r"weights need [\d,.]+ GB of memory.* free; lower the sizes in the tables"):
        limits.check_memory(config(large), 5, 5, CPU)


def test_batch_smaller_than_most_pairs_is_refused():
    pairs = [("a", "x y z")] * 3 + [("a", "x")] * 2
    limits.check_batches(config(batch_tokens=4), pairs)
    with pytest.raises(ConfigError, match=r"batch_tokens = 3 is less than one pair: half of the 5 targets have 4"):
        limits.check_batches(config(batch_tokens=3), pairs)


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ("[training]\nbatch_tokens = 2\n", "training: batch_tokens = 2 is less than one pair"),
        ("[model]\nembedding = 1000000\nencoder_hidden = 1000000\n", "free; lower the sizes in the tables model"),
        ("[model]\nencoder_hidden = 9223372036854775808\n", "encoder_hidden must be less than 2**63 in magnitude"),
    ],
)
def test_train_refuses_before_it_writes(tmp_path, edge_attn_cli, table, error):
    (tmp_path / "run.toml").write_text(f'[data]\ntrain = "train.tsv"\nholdout = 1\n{table}')
    (tmp_path / "train.tsv").write_text("a b\tx y\n" * 5)
    edge_attn_cli("train", tmp_path / "run.toml", "--out", tmp_path / "run", code=4, error=error)
    assert not (tmp_path / "run").exists()
