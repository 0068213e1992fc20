"""Checkpoints: a folder with config.json, model.safetensors, text/ and MODEL_CARD.md. No pickle.

While training runs the folder also holds training.safetensors: weights, optimizer, and the position in the data, all in
one file that is replaced atomically, so that a run killed at any moment resumes from a whole state.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from edge_attn.config import Config, from_mapping
from edge_attn.errors import CheckpointError, ConfigError, InputError
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.registry import FAMILIES, resolve
from edge_attn.text import Text

CONFIG, MODEL, STATE, CARD = "config.json", "model.safetensors", "training.safetensors", "MODEL_CARD.md"
FORMAT = 1


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `path` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def save_config(folder: Path, config: Config, text: Text) -> None:
    for name, data in text.files().items():
        write_atomically(folder / name, data)
    content = {"format": FORMAT, **dataclasses.asdict(config)}
    write_atomically(folder / CONFIG, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def save_model(folder: Path, model: torch.nn.Module, storage: str) -> None:
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[storage]
    weights = {name: value.to(dtype) for name, value in _weights(model).items()}
    write_atomically(folder / MODEL, save(weights))


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict, shared tensors once (safetensors keeps no aliases)."""
    seen: set[int] = set()
    weights = {}
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            weights[name] = value.detach().contiguous().clone()
    return weights


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
        found = content.pop("format")
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint's configuration: {error}") from error
    if found != FORMAT:
        raise CheckpointError(f"{path} has format {found!r}, this version reads {FORMAT}; install a newer edge-attn")
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
    model = make_model(config, text)
    path = folder / MODEL
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    expected = {name: tuple(value.shape) for name, value in _weights(model).items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{path} does not fit {folder / CONFIG}: {name} has shape {found.get(name, 'none')}, "
                f"the configuration expects {expected.get(name, 'none')}"
            )
    own = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    return model.eval(), text, config


def save_state(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    tensors = {f"model.{name}": value for name, value in _weights(model).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": value.contiguous() for name, value in state.items()})
    write_atomically(folder / STATE, save(tensors, metadata={"progress": json.dumps(progress, sort_keys=True)}))


def load_state(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts the last saved training state into `model` and `optimizer`; gives the progress that was saved with it."""
    path = folder / STATE
    try:
        with safe_open(path, "pt") as file:
            progress: dict[str, Any] = json.loads((file.metadata() or {})["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a training state: {error}; remove it to start over") from error
    own = dict(model.named_parameters(remove_duplicate=False))
    state: dict[int, dict[str, torch.Tensor]] = {}
    with torch.no_grad():
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "model":
                own[rest].copy_(value)
            else:
                index, _, field = rest.partition(".")
                state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
