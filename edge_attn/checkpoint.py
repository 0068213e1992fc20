"""Checkpoints: a folder with config.json, model.safetensors, text/ and MODEL_CARD.md. No pickle.

text/ contains the tokenizers and samples.txt, the validation sentences from which export records the golden data.
Training adds training.safetensors, see edge_attn/training/state.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from edge_attn.config.checkpoint import CONFIG as CONFIG
from edge_attn.config.checkpoint import FORMAT as FORMAT
from edge_attn.config.checkpoint import MODEL as MODEL
from edge_attn.config.checkpoint import load_config as load_config
from edge_attn.config.training import Config
from edge_attn.errors import CheckpointError, InputError
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.registry import FAMILIES, resolve
from edge_attn.storage.atomic import remove_leftovers, write_bytes
from edge_attn.text.pipeline import Text

CARD = "MODEL_CARD.md"
SAMPLES = "text/samples.txt"


def write_file(path: Path, data: bytes) -> None:
    """Write a file completely or not at all, and remove what a killed writer of it left. Only for its single writer.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        remove_leftovers(path)
        write_bytes(path, data)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def save_config(folder: Path, config: Config, text: Text) -> None:
    """Write the configuration and the text files into the checkpoint `folder`."""
    for name, data in text.files().items():
        write_file(folder / name, data)
    content = {"format": FORMAT, **dataclasses.asdict(config)}
    write_file(folder / CONFIG, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def save_model(folder: Path, model: nn.Module, storage: str) -> None:
    """Write the weights; `storage` is fp32 or fp16.

    Raises:
        CheckpointError: a weight is NaN or infinite, or too large for fp16.
    """
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[storage]
    weights = {}
    for name, value in named_weights(model).items():
        weights[name] = value.to(dtype)
        if not value.isfinite().all():
            raise CheckpointError(f"{folder / MODEL} is not written: {name} contains NaN or infinity")
        if not weights[name].isfinite().all():
            raise CheckpointError(
                f"{folder / MODEL} is not written: {name} reaches {float(value.abs().max()):g}, "
                f"the largest {storage} number is {torch.finfo(dtype).max:g}; "
                f'train with training.storage = "fp32"'
            )
    write_file(folder / MODEL, save(weights))


def save_samples(folder: Path, samples: Sequence[str]) -> None:
    """Write the source sentences for the golden data, one a line."""
    write_file(folder / SAMPLES, "".join(f"{sample}\n" for sample in samples).encode())


def load_samples(folder: Path) -> list[str]:
    """Return the source sentences that `train` chose from the validation pairs; none if the file is missing.

    Raises:
        CheckpointError: the file cannot be read, or is not UTF-8.
    """
    path = folder / SAMPLES
    try:
        return [line for line in path.read_bytes().decode().split("\n") if line]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from error


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters, shared ones once, because safetensors stores no aliases."""
    return {name: value.detach().contiguous() for name, value in model.named_parameters()}


def load_text(folder: Path) -> Text:
    """Return the text processing of the checkpoint `folder`.

    Raises:
        CheckpointError: a file cannot be read.
    """

    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}") from error

    return Text.load(read)


def make_model(config: Config, text: Text) -> Seq2Seq:
    """Build the model of the configuration, with initial weights."""
    family = resolve("family", FAMILIES, config.model.family)
    model: Seq2Seq = family(config.model, len(text.source), len(text.target))
    return model


def load(folder: Path) -> tuple[Seq2Seq, Text, Config]:
    """Return the model (fp32, evaluation mode), its text and its configuration.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    config = load_config(folder)
    text = load_text(folder)
    path = folder / MODEL
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    try:
        with torch.device("meta"):
            expected = named_weights(make_model(config, text))
    except (RuntimeError, TypeError) as error:  # from torch, for sizes past 64 bits
        raise CheckpointError(f"{path} does not fit {folder / CONFIG}: no model has such sizes") from error
    check_shapes(weights, expected, str(path), str(folder / CONFIG))
    for name, value in weights.items():
        if value.dtype not in (torch.float32, torch.float16) or not value.isfinite().all():
            raise CheckpointError(f"{path}: {name} is not fp32 or fp16, or contains NaN or infinity")
    model = make_model(config, text)
    with torch.no_grad():
        for name, value in named_weights(model).items():
            value.copy_(weights[name])
    return model.eval(), text, config


def check_shapes(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str, reference: str) -> None:
    """Check that a file contains the expected tensors.

    Args:
        actual: tensors of the file.
        expected: tensors of the same names and shapes.
        path: the file, for the message.
        reference: source of the expected shapes, for the message.

    Raises:
        CheckpointError: a tensor is missing, additional or of another shape.
    """
    for name in sorted(expected.keys() | actual.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else "none" for tensors in (actual, expected)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{path} does not fit {reference}: {name} has shape {shapes[0]}, expected {shapes[1]}"
            )
