"""A training state is loaded as it was saved, or is refused with an error that names the file."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.training import Config, DataConfig, TextConfig
from edge_attn.errors import CheckpointError
from edge_attn.text.pipeline import Text
from edge_attn.training.state import STATE, Progress, save_state
from edge_attn.training.trainer import Trainer

TEXT = Text.train(TextConfig("words", 20, 20), [("a b c", "x y")])
CONFIG = Config(
    DataConfig("train.tsv", holdout=1),
    model=Seq2SeqConfig(
        embedding=6, encoder_hidden=4, decoder_hidden=8, attention_size=5, tied_output=True, input_feeding=True
    ),
)


def trained(folder: Path) -> Trainer:
    """Return a run after two updates with random gradients, its state saved."""
    run = Trainer(CONFIG, TEXT, folder)
    for _ in range(2):
        for parameter in run.model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        run.optimizer.step()
    run.progress = Progress(update=2, epoch=1, batch=3, bad_validations=1)
    save_state(folder, run.model, run.optimizer, run.progress)
    return run


def test_saved_state_is_loaded(tmp_path):
    run, resumed = trained(tmp_path), Trainer(CONFIG, TEXT, tmp_path)
    assert resumed.progress == Progress(update=2, epoch=1, batch=3, best=math.inf, bad_validations=1)
    torch.manual_seed(9)
    gradients = [torch.randn(p.shape) for p in run.model.parameters()]
    for trainer in (run, resumed):
        for parameter, gradient in zip(trainer.model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        trainer.optimizer.step()  # equal weights alone would pass without the moments
    for expected, actual in zip(run.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(expected, actual)


def test_former_name_in_the_progress_is_loaded(tmp_path):
    trained(tmp_path)
    save_file(load_file(tmp_path / STATE), tmp_path / STATE, {"progress": '{"update": 2, "worse": 3}'})
    assert Trainer(CONFIG, TEXT, tmp_path).progress == Progress(update=2, bad_validations=3)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def with_tensors(change):
    def damage(path):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"progress": json.dumps(dataclasses.asdict(Progress()))})

    return damage


def with_metadata(content):
    return lambda path: save_file(load_file(path), path, content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "is not a training state: .*; remove it to start over"),
        (emptied, "is not a training state"),
        (with_metadata(None), "is not a training state"),
        (with_metadata({"progress": "{"}), "is not a training state"),
        (with_metadata({"progress": '{"update": "2"}'}), "update must be of type int, got '2'"),
        (with_metadata({"progress": '{"color": 2}'}), "unknown key 'color'"),
        (with_metadata({"progress": "3"}), "is not a training state"),
        (with_tensors(lambda t: t.pop("model.combine.bias")), r"model.combine.bias has shape none, expected \(6,\)"),
        (with_tensors(lambda t: t.pop("optimizer.3.exp_avg")), "optimizer.3.exp_avg has shape none"),
        (with_tensors(lambda t: t.pop("optimizer.0.step")), "optimizer.0.step has shape none"),
        (with_tensors(lambda t: t.update({"model.more": torch.zeros(1)})), "model.more has shape .*, expected none"),
        (with_tensors(lambda t: t.update({"optimizer.99.step": torch.zeros(())})), "optimizer.99.step has shape"),
        (with_tensors(lambda t: t.update({"optimizer.x": torch.zeros(())})), "optimizer.x has shape"),
        (
            with_tensors(lambda t: t.update({"model.combine.bias": torch.zeros(1)})),
            r"has shape \(1,\), expected \(6,\)",
        ),
    ],
)
def test_damaged_state_is_refused(tmp_path, damage, message):
    trained(tmp_path)
    damage(tmp_path / STATE)
    with pytest.raises(CheckpointError, match=message):
        Trainer(CONFIG, TEXT, tmp_path)
