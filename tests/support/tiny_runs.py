"""Training runs of a fraction of a second: their data and their checkpoints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_attn.config.training import TextConfig, read_config
from edge_attn.text.corpus import read_pairs
from edge_attn.text.pipeline import Text
from edge_attn.training.data import Pairs
from edge_attn.training.trainer import RunOptions, Trainer

FILES = {"config.json", "model.safetensors", "training.safetensors", "log.csv", "text"}


def reversals(count: int, seed: int) -> list[tuple[str, str]]:
    """Return pairs of random letters and the same letters in reverse order."""
    random = np.random.default_rng(seed)
    sources = [" ".join("abcdef"[i] for i in random.integers(0, 6, random.integers(1, 6))) for _ in range(count)]
    return [(source, source[::-1]) for source in sources]


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> None:
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs))


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def a_run(config_path: Path, out: Path, world: int = 1) -> tuple[Trainer, Pairs]:
    config = read_config(config_path)
    pairs = read_pairs(config_path.parent / "train.tsv")
    text = Text.train(TextConfig("words", 20, 20), pairs)
    out.mkdir(exist_ok=True)
    return Trainer(config, text, out, RunOptions(world=world)), Pairs.encode(text, pairs, 100)


def alone_and_shared(config_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Trainer, Trainer]:
    """Return a run after one update, and the same run as one of two processes with equal batches."""
    alone, pairs = a_run(config_path, out)
    alone.update(pairs.batch(np.arange(8)))
    shared, _ = a_run(config_path, out, world=2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    shared.update(pairs.batch(np.arange(8)))
    return alone, shared


def have_the_same_weights(one: Trainer, other: Trainer) -> bool:
    weights = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.allclose(a, b, atol=1e-7) for a, b in weights)


def progress(out: Path) -> dict[str, int]:
    from safetensors import safe_open

    with safe_open(out / "training.safetensors", "pt") as file:
        return json.loads(file.metadata()["progress"])
