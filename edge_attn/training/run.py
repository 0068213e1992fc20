"""`edge-attn train`: from a configuration and sentence pairs to a checkpoint.

A run is a function of its configuration, its data, its thread count and its number of processes: (seed, epoch) defines
the batches of an epoch, (seed, update, process) the dropout of an update. So a killed run resumes from its last state
and ends with the same weights as one that was not killed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from edge_attn import checkpoint
from edge_attn.config.training import Config, DataConfig
from edge_attn.errors import ConfigError, InputError, UsageError
from edge_attn.text.corpus import read_corpus
from edge_attn.text.pipeline import Text
from edge_attn.training.data import Pairs, choose_samples
from edge_attn.training.device import choose_device, describe
from edge_attn.training.initial_weights import check_initial_model
from edge_attn.training.inputs import FORMER_PARTIAL, check_inputs, existing_run
from edge_attn.training.journal import Journal
from edge_attn.training.limits import check_batches, check_memory
from edge_attn.training.state import STATE
from edge_attn.training.trainer import RunOptions, Trainer
from edge_attn.training.translations import ValidationSentences


def train(
    config_path: Path,
    out: Path,
    data: Path | None = None,
    threads: int | None = None,
    init: Path | None = None,
    device: str = "auto",
    settings: Sequence[str] = (),
    tensorboard: Path | None = None,
) -> None:
    """Train the model of `config_path` into the checkpoint `out`, or resume the interrupted run there.

    Under torchrun each process takes one batch of every update (nccl on GPUs, gloo on a CPU).

    Args:
        config_path: training configuration, a TOML file.
        out: checkpoint folder.
        data: folder of the data files; the configuration's folder if None.
        threads: CPU threads; None lets torch choose.
        init: checkpoint whose weights a new run begins with, see edge_attn/training/initial_weights.py; None for random
            ones. A run that is resumed does not read it again.
        device: "cpu", "cuda", or "auto": a CUDA GPU if there is one.
        settings: values that replace those of the file, as "training.updates=40".
        tensorboard: folder for TensorBoard's event files; None for none.

    Raises:
        UsageError: `threads` is less than one, `device` is unknown.
        ConfigError, InputError: the configuration or the data cannot be used.
        CheckpointError: `out` contains a run of another configuration, or `init` is not a checkpoint of this model.
        NotTestedError: there is no such device.
        MissingExtraError: TensorBoard is requested and not installed.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP. The state of the run is saved before.
    """
    if threads is not None:
        if threads < 1:
            raise UsageError(f"`threads` must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    config = check_inputs(config_path, out, data, init, settings)
    place = choose_device(device)
    _check_model(config, config_path, place)
    if init is not None and not (out / STATE).exists():
        check_initial_model(init, config)
    with _processes(place) as (rank, world):
        train_pairs, valid_pairs = _read(config.data, data or config_path.parent)
        check_batches(config, train_pairs)
        text = _prepare(config, out, train_pairs, valid_pairs, rank)
        check_memory(config, len(text.source), len(text.target), place)
        limit = config.data.max_tokens
        encoded = Pairs.encode(text, train_pairs, limit), Pairs.encode(text, valid_pairs, limit)
        trainer = Trainer(config, text, out, RunOptions(rank, world, place, init))
        progress, updates = trainer.progress, config.training.updates
        sentences = ValidationSentences.choose(text, valid_pairs, config.training.scored_sentences, limit)
        with contextlib.closing(Journal(out, updates, progress.update, rank == 0, tensorboard)) as journal:
            journal.table(
                [
                    ("data", _describe_pairs(config.data.train, train_pairs, encoded[0], limit)),
                    ("validation", _describe_pairs(config.data.valid or "held out", valid_pairs, encoded[1], limit)),
                    ("vocabulary", f"{config.text.kind}, source {len(text.source):,}, target {len(text.target):,}"),
                    ("model", trainer.describe()),
                    ("device", f"{describe(place)}{f', {world} processes' if world > 1 else ''}, {trainer.compute}"),
                    ("run", _describe_run(out, trainer, init)),
                ]
            )
            trainer.fit(*encoded, sentences, journal)
            journal.print(_describe_end(out, trainer))


def _describe_pairs(files: str | Sequence[str], pairs: Sequence[tuple[str, str]], encoded: Pairs, limit: int) -> str:
    name = files if isinstance(files, str) else " and ".join(files)
    omitted = len(pairs) - len(encoded.source)
    reason = f", {omitted:,} left out (more than {limit} tokens on a side)" if omitted else ""
    return f"{name}: {len(pairs):,} pairs{reason}"


def _describe_run(out: Path, trainer: Trainer, init: Path | None) -> str:
    progress, options = trainer.progress, trainer.options
    begin = f"resumes at update {progress.update} of" if progress.update else "new,"
    first = f", first weights of {init}" if init is not None and not progress.update else ""
    return (
        f"{out}: {begin} {options.updates} updates of {options.batch_tokens} target tokens, "
        f"learning rate {options.learning_rate:g}{first}"
    )


def _describe_end(out: Path, trainer: Trainer) -> str:
    """Return the last line: how the run ended, and the next command."""
    progress, options = trainer.progress, trainer.options
    if progress.bad_validations >= options.patience:
        end = f"stopped early at update {progress.update}: {progress.bad_validations} validations without a lower loss"
    else:
        end = f"complete: {progress.update} updates (more: increase training.updates and run the same command)"
    return (
        f"{end}; the checkpoint has the weights of the lowest validation loss, {progress.best:.4f}\n"
        f"Next: edge-attn export {out} --out {out}.zip"
    )


def _check_model(config: Config, path: Path, device: torch.device) -> None:
    """Check the options that only the layers can check, and the memory for them, before anything is written."""
    try:
        check_memory(config, 5, 5, device)
    except ConfigError as error:
        raise ConfigError(f"{path}: model: {error}") from error


@contextlib.contextmanager
def _processes(device: torch.device) -> Iterator[tuple[int, int]]:
    """Yield the rank of this process and the number of processes."""
    if "WORLD_SIZE" not in os.environ:
        yield 0, 1
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def _read(config: DataConfig, folder: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    pairs = read_corpus(folder, config.train, config.separator, config.columns)
    if config.valid:
        return pairs, read_corpus(folder, config.valid, config.separator, config.columns)
    if config.holdout >= len(pairs):
        name = config.train if isinstance(config.train, str) else config.train[0]
        raise InputError(f"{folder / name} has {len(pairs)} pairs, data.holdout is {config.holdout}")
    return pairs[: -config.holdout], pairs[-config.holdout :]


def _prepare(config: Config, out: Path, train: list[tuple[str, str]], valid: list[tuple[str, str]], rank: int) -> Text:
    """Return the text processing of the run, which the first process trains and all processes load."""
    if rank == 0:
        _open_or_create(config, out, train)
        if not (out / checkpoint.SAMPLES).exists():
            text, limit = checkpoint.load_text(out), config.data.max_tokens
            sources = [source for source, _ in valid if len(text.encode_source(source)) <= limit]
            checkpoint.save_samples(out, choose_samples(text, sources))
    if dist.is_initialized():
        dist.barrier()
    return checkpoint.load_text(out)


def _open_or_create(config: Config, out: Path, train: list[tuple[str, str]]) -> None:
    """Check that `out` is a run of this configuration, or create it with its configuration and text.

    The configuration may have more updates than the run: it then resumes with the learning rate of the longer run.

    Raises:
        CheckpointError: `out` contains something else, or a run of another configuration.
        InputError: `out` cannot be written.
    """
    existing = existing_run(config, out)
    if existing is not None:
        if existing != config:
            checkpoint.save_config(out, config, checkpoint.load_text(out))
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / FORMER_PARTIAL).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from error
    checkpoint.save_config(out, config, Text.train(config.text, train))
