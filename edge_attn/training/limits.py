"""Checks that this machine can train a model of a configuration on its data, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edge_attn.config.training import Config
from edge_attn.errors import ConfigError
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.system_memory import system_memory

TRAINING_BYTES = 16
"""Bytes of a weight on the device that trains: the weight, its gradient and two moments of Adam, in fp32."""
HOST_BYTES = 4
"""Bytes of a weight on the host of another device."""


def check_memory(config: Config, source_vocabulary: int, target_vocabulary: int, device: torch.device) -> None:
    """Check that the weights, their gradients and the optimizer fit into the memory of this machine.

    Args:
        config: the training configuration.
        source_vocabulary: entries of the source vocabulary.
        target_vocabulary: entries of the target vocabulary.
        device: device that trains.

    Raises:
        ConfigError: they do not fit, or the layers refuse an option.
    """
    with torch.device("meta"):
        model = Seq2Seq(config.model, source_vocabulary, target_vocabulary)
    weights = sum(parameter.numel() for parameter in model.parameters())
    needed = weights * (TRAINING_BYTES if device.type == "cpu" else HOST_BYTES)
    memory = system_memory()
    if memory is not None and needed > memory.available + memory.swap:
        raise ConfigError(
            f"{weights:,} weights need {needed / 1e9:,.1f} GB of memory for training, this machine has "
            f"{(memory.available + memory.swap) / 1e9:,.1f} GB free; lower the sizes in the tables model and text"
        )


def check_batches(config: Config, pairs: Sequence[tuple[str, str]]) -> None:
    """Check that a batch has room for more than one pair.

    A target has at least as many tokens as words, and its end symbol.

    Raises:
        ConfigError: most pairs alone are longer than `training.batch_tokens`.
    """
    limit = config.training.batch_tokens
    lengths = sorted(len(target.split()) + 1 for _, target in pairs)
    median = lengths[len(lengths) // 2]
    if median > limit:
        raise ConfigError(
            f"training: batch_tokens = {limit} is less than one pair: half of the {len(pairs):,} targets have "
            f"{median} tokens or more, so that each update would train on a single pair; use {32 * median} or more"
        )
