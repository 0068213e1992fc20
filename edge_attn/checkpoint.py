"""Checkpoints: a folder with config.json, model.safetensors, text/ and MODEL_CARD.md. No pickle.

text/ holds the tokenizers, and in samples.txt the validation sentences from which export makes golden data.

While training runs the folder also holds training.safetensors: weights, optimizer, and the position in the data, all in
one file that is replaced atomically, so that a run killed at any moment resumes from a whole state.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from edge_attn.config.training import Config
from edge_attn.config.validation import from_mapping
from edge_attn.errors import CheckpointError, ConfigError, InputError
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.registry import FAMILIES, resolve
from edge_attn.storage.atomic import remove_leftovers, write_bytes
from edge_attn.text.pipeline import Text

CONFIG, MODEL, STATE, CARD = "config.json", "model.safetensors", "training.safetensors", "MODEL_CARD.md"
SAMPLES = "text/samples.txt"
FORMAT = 1


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
    for name, data in text.files().items():
        write_file(folder / name, data)
    content = {"format": FORMAT, **dataclasses.asdict(config)}
    write_file(folder / CONFIG, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def save_model(folder: Path, model: nn.Module, storage: str) -> None:
    """Writes the weights, in fp32 or fp16.

    Raises:
        CheckpointError: a weight is not a number, or does not fit fp16.
    """
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[storage]
    weights = {}
    for name, value in _weights(model).items():
        weights[name] = value.to(dtype)
        if not value.isfinite().all():
            raise CheckpointError(f"{folder / MODEL} is not written: {name} holds NaN or infinity")
        if not weights[name].isfinite().all():
            raise CheckpointError(
                f"{folder / MODEL} is not written: {name} reaches {float(value.abs().max()):g}, {storage} holds up to "
                f'{torch.finfo(dtype).max:g}; train with training.storage = "fp32"'
            )
    write_file(folder / MODEL, save(weights))


def save_samples(folder: Path, samples: Sequence[str]) -> None:
    write_file(folder / SAMPLES, "".join(f"{sample}\n" for sample in samples).encode())


def load_samples(folder: Path) -> list[str]:
    """The source sentences that `train` chose from the validation pairs; none in a checkpoint without them."""
    path = folder / SAMPLES
    try:
        return [line for line in path.read_bytes().decode().split("\n") if line]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from error


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters, shared ones once (safetensors keeps no aliases)."""
    return {name: value.detach().contiguous() for name, value in model.named_parameters()}


def load_config(folder: Path) -> Config:
    """The configuration of the checkpoint `folder`.

    Raises:
        CheckpointError: not a checkpoint, or one of a newer format.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {CONFIG}")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    found = content.pop("format", None) if isinstance(content, dict) else None
    if type(found) is not int or found < 1:
        raise CheckpointError(f"{path} is not a checkpoint's configuration: it has no format number")
    if found > FORMAT:
        raise CheckpointError(f"{path} has format {found}, this version reads {FORMAT}; install a newer edge-attn")
    try:
        return from_mapping(Config, content, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def load_text(folder: Path) -> Text:
    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}") from error

    return Text.load(read)


def make_model(config: Config, text: Text) -> Seq2Seq:
    family = resolve("family", FAMILIES, config.model.family)
    made: Seq2Seq = family(config.model, len(text.source), len(text.target))
    return made


def load(folder: Path) -> tuple[Seq2Seq, Text, Config]:
    """The model (fp32, evaluation mode), its text and its configuration.

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
            expected = _weights(make_model(config, text))
    except (RuntimeError, TypeError) as error:  # torch's, for sizes past 64 bits
        raise CheckpointError(f"{path} does not fit {folder / CONFIG}: no model has such sizes") from error
    _compare(weights, expected, str(path), str(folder / CONFIG))
    for name, value in weights.items():
        if value.dtype not in (torch.float32, torch.float16) or not value.isfinite().all():
            raise CheckpointError(f"{path}: {name} is not fp32 or fp16, or holds NaN or infinity")
    model = make_model(config, text)
    with torch.no_grad():
        for name, value in _weights(model).items():
            value.copy_(weights[name])
    return model.eval(), text, config


def _compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str, other: str) -> None:
    for name in sorted(expected.keys() | found.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else "none" for tensors in (found, expected)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"{path} does not fit {other}: {name} has shape {shapes[0]}, expected {shapes[1]}")


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    tensors = {f"model.{name}": value for name, value in _weights(model).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": value.contiguous() for name, value in state.items()})
    write_file(folder / STATE, save(tensors, metadata={"progress": json.dumps(progress, sort_keys=True)}))


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Any]:
    """Puts the last saved training state into `model` and `optimizer`; gives the progress that was saved with it.

    Raises:
        CheckpointError: the file is damaged, or is not the state of this model.
    """
    path = folder / STATE
    try:
        with safe_open(path, "pt") as file:
            progress: dict[str, Any] = json.loads((file.metadata() or {})["progress"])
            if not isinstance(progress, dict):
                raise ValueError("its progress is not a table")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a training state: {error}; remove it to start over") from error
    own = {f"model.{name}": value for name, value in _weights(model).items()}
    expected = dict(own)
    for index, value in enumerate(model.parameters()):
        expected[f"optimizer.{index}.step"] = torch.zeros(())
        expected[f"optimizer.{index}.exp_avg"] = expected[f"optimizer.{index}.exp_avg_sq"] = value
    _compare(tensors, expected, str(path), "the model")
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name in own:
            own[name].copy_(value)
        else:
            _, index, field = name.split(".")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
