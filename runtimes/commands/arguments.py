"""Checks of the paths that commands receive, before a model is loaded."""

from __future__ import annotations

from pathlib import Path

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.checkpoint import load_config
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import UsageError
from edge_attn.path_kind import BUNDLE, CHECKPOINT, recognize
from edge_attn.progress import logger
from edge_attn.runtimes.base import is_checkpoint
from edge_attn.runtimes.tasks.translation import Translator
from edge_attn.text.corpus import check_text_file


def check_model(path: Path) -> None:
    """Check that `path` is a bundle, or the configuration of a checkpoint, before another model is run.

    Raises:
        BundleError, CheckpointError: it is neither, or damaged.
    """
    if is_checkpoint(path):
        load_config(path)
    else:
        Bundle.open(path)


def open_model(path: Path, runtime: str, options: RuntimeOptions) -> Translator:
    """Open a bundle on `runtime`, or a checkpoint on torch, with a warning that no deployed model runs.

    Raises:
        EdgeAttnError: those of `Translator.open`.
    """
    translator = Translator.open(path, runtime, options)
    if is_checkpoint(path):
        logger.warning("%s is a checkpoint: torch runs it; for a device: edge-attn export %s --out BUNDLE", path, path)
    return translator


def check_model_and_corpus(model: Path, corpus: Path) -> None:
    """Check that `corpus` can be a file of pairs, and that the two were not exchanged.

    Raises:
        UsageError: `corpus` is a model, and `model` is none.
        InputError: `corpus` cannot be read, or is no text.
    """
    models = (BUNDLE, CHECKPOINT)
    kind = recognize(corpus)
    if kind in models and recognize(model) not in models:
        raise UsageError(f"the model comes first, then the file of pairs; exchange them: {corpus} is {kind.name}")
    check_text_file(corpus)
