"""A run begins with the weights of another checkpoint, whose vocabulary it may extend."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import reversals, write_pairs

from edge_attn import checkpoint
from edge_attn.errors import CheckpointError
from edge_attn.training.run import train


@pytest.fixture
def former(tiny, out):
    """Return the checkpoint of a complete run."""
    train(tiny(), out)
    return out


def first_weights(config, folder, former):
    """Return the model after a run without progress, its text and the former model and text."""
    config.write_text(config.read_text().replace("learning_rate = 0.01", "learning_rate = 1e-12"))
    train(config, folder, init=former)
    model, text, _ = checkpoint.load(folder)
    former_model, former_text, _ = checkpoint.load(former)
    return model, text, former_model, former_text


def test_run_begins_with_the_weights_of_init(tiny, former, tmp_path):
    model, _, former_model, _ = first_weights(tiny(updates=1), tmp_path / "new", former)
    for (name, value), other in zip(model.named_parameters(), former_model.parameters(), strict=True):
        torch.testing.assert_close(value, other, atol=2e-3, rtol=2e-3, msg=name)  # stored as fp16


@pytest.mark.parametrize("side", ["source", "target"])
def test_vocabulary_is_extended(tiny, former, tmp_path, side):
    config = tiny(updates=1)
    pairs = [(f"{source} zz", f"{target} zz") for source, target in reversals(50, 3)]
    write_pairs(tmp_path / "train.tsv", [*reversals(200, 1)[::-1], *pairs])
    model, text, former_model, former_text = first_weights(config, tmp_path / "new", former)
    embeddings = [m.encoder.embedding if side == "source" else m.embedding for m in (model, former_model)]
    present, before = getattr(text, side), getattr(former_text, side)
    assert len(present) == len(before) + 1
    for index, piece in enumerate(present.pieces(range(len(present)))):
        former_id = 1 if piece == "zz" else before.pieces(range(len(before))).index(piece)  # 1 is <unk>
        torch.testing.assert_close(
            embeddings[0].weight[index], embeddings[1].weight[former_id], atol=2e-3, rtol=2e-3, msg=piece
        )


def test_other_sizes_are_refused_before_training(tiny, former, tmp_path):
    config = tiny()
    config.write_text(config.read_text().replace("decoder_hidden = 7", "decoder_hidden = 8"))
    with pytest.raises(CheckpointError, match=r"--init.*does not fit.*has shape"):
        train(config, tmp_path / "new", init=former)
    assert not (tmp_path / "new").exists()


def test_init_that_is_no_checkpoint_is_refused_before_training(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        train(tiny(), tmp_path / "new", init=tmp_path)
    assert not (tmp_path / "new").exists()


def test_resumed_run_ignores_init(tiny, former, tmp_path):
    train(tiny(), tmp_path / "new", init=former)
    train(tiny(updates=12), tmp_path / "new", init=tmp_path / "missing")
