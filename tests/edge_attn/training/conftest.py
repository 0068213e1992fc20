"""A configuration that trains in a fraction of a second, and its output folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import reversals, write_pairs

TINY = """
[data]
train = "train.tsv"
valid = "valid.tsv"
[text]
kind = "words"
[model]
embedding = 6
encoder_hidden = 5
decoder_hidden = 7
attention_size = 4
dropout = 0.1
[training]
updates = {updates}
warmup = 4
batch_tokens = 60
validate_every = {validate_every}
checkpoint_every = {checkpoint_every}
learning_rate = 0.01
storage = "fp16"
"""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path):
    """Return a function that writes a configuration with its data, and returns its path."""
    write_pairs(tmp_path / "train.tsv", reversals(200, 1))
    write_pairs(tmp_path / "valid.tsv", reversals(40, 2))

    def tiny(more: str = "", updates: int = 10, validate_every: int = 4, checkpoint_every: int = 3) -> Path:
        content = TINY.format(updates=updates, validate_every=validate_every, checkpoint_every=checkpoint_every)
        (tmp_path / "tiny.toml").write_text(content + more)
        return tmp_path / "tiny.toml"

    return tiny


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"
