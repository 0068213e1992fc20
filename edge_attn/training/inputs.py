"""Checks of what `edge-attn train` receives, before torch is imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edge_attn.config.checkpoint import CONFIG, STATE, load_config
from edge_attn.config.training import Config, read_config
from edge_attn.errors import CheckpointError
from edge_attn.storage.atomic import leftovers
from edge_attn.text.corpus import check_corpus

FORMER_PARTIAL = f".{CONFIG}.partial"
"""Name of the unfinished configuration in 0.1.0."""


def check_inputs(
    config_path: Path, out: Path, data: Path | None, init: Path | None = None, settings: Sequence[str] = ()
) -> Config:
    """Check the inputs of a training run, and return its configuration.

    Args:
        config_path: training configuration, a TOML file.
        out: checkpoint folder.
        data: folder of the data files; the configuration's folder if None.
        init: checkpoint whose weights a new run begins with.
        settings: values that replace those of the file, as "training.updates=40".

    Raises:
        ConfigError, InputError: the configuration cannot be used, or a data file does not begin with a pair.
        CheckpointError: `out` contains something else, or a run of another configuration; `init` is no checkpoint.
    """
    config = read_config(config_path, settings)
    for files in filter(None, (config.data.train, config.data.valid)):
        check_corpus(data or config_path.parent, files, config.data.separator, config.data.columns)
    existing_run(config, out)
    if init is not None and not (out / STATE).exists():  # a resumed run does not read it
        load_config(init)
    return config


def existing_run(config: Config, out: Path) -> Config | None:
    """Return the configuration of the run in `out`, or None if it has none yet.

    The configuration may have more updates than the run.

    Raises:
        CheckpointError: `out` contains something else, or a run of another configuration.
    """
    if (out / CONFIG).exists():
        existing = load_config(out)
        updates = max(existing.training.updates, config.training.updates)
        longer = dataclasses.replace(existing, training=dataclasses.replace(existing.training, updates=updates))
        if longer != config:
            raise CheckpointError(
                f"{out} contains a run of another configuration; choose another `out`, or remove it "
                f"(only training.updates may increase)"
            )
        return existing
    unfinished = {out / "text", out / FORMER_PARTIAL, *leftovers(out / CONFIG)}
    if out.exists() and not (out.is_dir() and set(out.iterdir()) <= unfinished):
        raise CheckpointError(f"{out} exists and is not a checkpoint; choose another `out`")
    return None
