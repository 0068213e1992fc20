"""The training state: weights, optimizer and progress in one file, which is replaced atomically.

So a run that is killed at any moment resumes from a complete state.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edge_attn.checkpoint import check_shapes, named_weights, write_file
from edge_attn.config.checkpoint import STATE as STATE
from edge_attn.config.validation import from_mapping
from edge_attn.errors import CheckpointError, ConfigError


@dataclasses.dataclass
class Progress:
    """Position of a run in its updates and its data."""

    update: int = 0
    epoch: int = 0
    batch: int = 0
    """Batches of the epoch that are done."""
    best: float = math.inf
    """Lowest validation loss."""
    bad_validations: int = dataclasses.field(default=0, metadata={"formerly": "worse"})
    """Validations since the best one."""
    baseline: float = 0.0
    """Moving average of the reward of hard attention, the log-probability of the reference tokens."""
    scale: float = 0.0
    """Factor of the loss in fp16 products. 0 for other precisions."""
    scale_age: int = 0
    """Updates since the factor changed."""


def save_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the state of a run into its checkpoint folder.

    Args:
        folder: the checkpoint.
        model: the model with its present weights.
        optimizer: the optimizer with its moments.
        progress: the position of the run.
        average: moving average of the weights, by name; empty without one.

    Raises:
        InputError: the file cannot be written.
    """
    tensors = {f"model.{name}": value for name, value in named_weights(model).items()}
    tensors.update({f"average.{name}": value for name, value in (average or {}).items()})
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": value.contiguous() for name, value in state.items()})
    metadata = {"progress": json.dumps(dataclasses.asdict(progress), sort_keys=True)}
    write_file(folder / STATE, save(tensors, metadata=metadata))


def load_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Adam, average: Mapping[str, Tensor] | None = None
) -> Progress:
    """Load the last saved state into `model`, `optimizer` and `average`, and return its progress.

    Raises:
        CheckpointError: the file is damaged, or is not the state of this model.
    """
    path = folder / STATE
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {})["progress"])
            if not isinstance(values, dict):
                raise ValueError("its progress is not a table")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a training state: {error}; remove it to start over") from error
    weights = {f"model.{name}": value for name, value in named_weights(model).items()}
    weights.update({f"average.{name}": value for name, value in (average or {}).items()})
    expected = dict(weights)
    for index, value in enumerate(model.parameters()):
        expected[f"optimizer.{index}.step"] = torch.zeros(())
        expected[f"optimizer.{index}.exp_avg"] = expected[f"optimizer.{index}.exp_avg_sq"] = value
    check_shapes(tensors, expected, str(path), "the model")
    try:
        progress = from_mapping(Progress, values, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name in weights:
            weights[name].copy_(value)
        else:
            _, index, field = name.split(".")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
