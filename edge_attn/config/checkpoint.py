"""The configuration in a checkpoint folder, which can be read without torch."""

from __future__ import annotations

from pathlib import Path

from edge_attn.config.json_values import parse_json
from edge_attn.config.training import Config
from edge_attn.config.validation import from_mapping
from edge_attn.errors import CheckpointError, ConfigError
from edge_attn.path_kind import CHECKPOINT, UNTRAINED, check_kind

CONFIG, MODEL, STATE = "config.json", "model.safetensors", "training.safetensors"
FORMAT = 2
"""Format number. Format 1 has the key of the normalizer in British spelling, and still loads."""


def load_config(folder: Path) -> Config:
    """Return the configuration of the checkpoint `folder`.

    Raises:
        CheckpointError: the folder is not a checkpoint, or has a newer format.
    """
    check_kind(folder, "a checkpoint", (CHECKPOINT, UNTRAINED), CheckpointError)
    path = folder / CONFIG
    if not path.is_file():
        reason = f"it has no {CONFIG}" if folder.exists() else "there is no such file or folder"
        raise CheckpointError(f"{folder} is not a checkpoint: {reason}")
    try:
        content = parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    version = content.pop("format", None) if isinstance(content, dict) else None
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path} is not a checkpoint's configuration: it has no format number")
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, this version reads up to {FORMAT}; install a newer edge-attn"
        )
    try:
        return from_mapping(Config, content, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
