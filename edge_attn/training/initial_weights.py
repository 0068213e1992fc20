"""First weights of a run from another checkpoint (fine-tuning), whose vocabularies may differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from edge_attn import checkpoint
from edge_attn.config.training import Config
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import SPECIAL, UNK, Tokenizer

SIDES = {
    "encoder.embedding.weight": "source",
    "embedding.weight": "target",
    "output.weight": "target",
    "output.bias": "target",
}
"""Side of the vocabulary that the rows of a weight belong to."""


def check_initial_model(folder: Path, config: Config) -> None:
    """Check that a model of the configuration can begin with the weights of the checkpoint `folder`.

    Raises:
        CheckpointError: the folder is not a checkpoint, or its weights have other names or sizes.
    """
    former, _, _ = checkpoint.load(folder)
    with torch.device("meta"):
        model = Seq2Seq(config.model, former.source_vocabulary, former.target_vocabulary)
    _check(checkpoint.named_weights(former), model, folder)


def _check(weights: Mapping[str, Tensor], model: Seq2Seq, folder: Path) -> None:
    expected = checkpoint.named_weights(model)
    checkpoint.check_shapes(weights, expected, f"{folder} (--init)", "the configuration's table model")


def copy_weights(folder: Path, model: Seq2Seq, text: Text) -> None:
    """Copy the weights of the checkpoint `folder` into `model`.

    Rows of a vocabulary go to the entry of the same piece. A new entry takes the mean row of the entries into which the
    former tokenizer splits it, so that a vocabulary can be extended.

    Raises:
        CheckpointError: the folder is not a checkpoint, or its weights have other names or sizes.
    """
    former, former_text, _ = checkpoint.load(folder)
    weights = checkpoint.named_weights(former)
    rows = {side: _former_rows(getattr(former_text, side), getattr(text, side)) for side in ("source", "target")}
    values = {name: _take_rows(value, rows[SIDES[name]]) if name in SIDES else value for name, value in weights.items()}
    _check(values, model, folder)
    with torch.no_grad():
        for name, value in checkpoint.named_weights(model).items():
            value.copy_(values[name])


def _former_rows(former: Tokenizer, present: Tokenizer) -> list[list[int]]:
    """Return for each entry of the present vocabulary the former ids whose rows it begins with."""
    ids = {piece: i for i, piece in enumerate(former.pieces(range(len(former))))}
    rows: list[list[int]] = []
    for index, piece in enumerate(present.pieces(range(len(present)))):
        if index < len(SPECIAL):
            rows.append([index])
        elif piece in ids:
            rows.append([ids[piece]])
        else:
            rows.append(former.encode(present.join([piece])) or [UNK])
    return rows


def _take_rows(value: Tensor, rows: list[list[int]]) -> Tensor:
    return torch.stack([value[row].float().mean(dim=0) for row in rows])
