"""`edge-attn train`: from a configuration and sentence pairs to a checkpoint.

A run is a function of its configuration, its data, its thread count and its number of processes: (seed, epoch) defines
the batches of an epoch, (seed, update, process) the dropout of an update. So a killed run resumes from its last state
and ends with the same weights as one that was not killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from edge_attn import checkpoint
from edge_attn.config.training import Config, DataConfig, TrainingConfig, read_config
from edge_attn.errors import CheckpointError, ConfigError, InputError, UsageError
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.storage.atomic import leftovers
from edge_attn.text.corpus import read_pairs
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import PAD
from edge_attn.training.averaging import Average
from edge_attn.training.data import Batch, Pairs, choose_samples
from edge_attn.training.initial_weights import check_initial_model, copy_weights
from edge_attn.training.state import STATE, Progress, load_state, save_state


def train(
    config_path: Path, out: Path, data: Path | None = None, threads: int | None = None, init: Path | None = None
) -> None:
    """Train the model of `config_path` into the checkpoint `out`, or resume the interrupted run there.

    Under torchrun each process takes one batch of every update (gloo).

    Args:
        config_path: training configuration, a TOML file.
        out: checkpoint folder.
        data: folder of the data files; the configuration's folder if None.
        threads: CPU threads; None lets torch choose.
        init: checkpoint whose weights a new run begins with, see edge_attn/training/initial_weights.py; None for random
            ones. A run that is resumed does not read it again.

    Raises:
        UsageError: `threads` is less than one.
        ConfigError, InputError: the configuration or the data cannot be used.
        CheckpointError: `out` contains a run of another configuration, or `init` is not a checkpoint of this model.
    """
    if threads is not None:
        if threads < 1:
            raise UsageError(f"`threads` must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    config = read_config(config_path)
    _check_model(config, config_path)
    if init is not None and not (out / STATE).exists():
        check_initial_model(init, config)
    with _processes() as (rank, world):
        train_pairs, valid_pairs = _read(config.data, data or config_path.parent)
        text = _prepare(config, out, train_pairs, valid_pairs, rank)
        trainer = Trainer(config, text, out, rank, world, init)
        limit = config.data.max_tokens
        trainer.fit(Pairs.encode(text, train_pairs, limit), Pairs.encode(text, valid_pairs, limit))


def _check_model(config: Config, path: Path) -> None:
    """Check the options that only the layers can check, before anything is written."""
    try:
        with torch.device("meta"):
            Seq2Seq(config.model, 5, 5)
    except ConfigError as error:
        raise ConfigError(f"{path}: model: {error}") from error


@contextlib.contextmanager
def _processes() -> Iterator[tuple[int, int]]:
    """Yield the rank of this process and the number of processes."""
    if "WORLD_SIZE" not in os.environ:
        yield 0, 1
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def _read(config: DataConfig, folder: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    pairs = read_pairs(folder / config.train, config.separator)
    if config.valid:
        return pairs, read_pairs(folder / config.valid, config.separator)
    if config.holdout >= len(pairs):
        raise InputError(f"{folder / config.train} has {len(pairs)} pairs, data.holdout is {config.holdout}")
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
    if (out / checkpoint.CONFIG).exists():
        existing = checkpoint.load_config(out)
        updates = max(existing.training.updates, config.training.updates)
        longer = dataclasses.replace(existing, training=dataclasses.replace(existing.training, updates=updates))
        if longer != config:
            raise CheckpointError(
                f"{out} contains a run of another configuration; choose another --out, or remove it "
                f"(only training.updates may increase)"
            )
        if existing != config:
            checkpoint.save_config(out, config, checkpoint.load_text(out))
        return
    former = out / f".{checkpoint.CONFIG}.partial"  # name of the unfinished file in 0.1.0
    unfinished = {out / "text", former, *leftovers(out / checkpoint.CONFIG)}
    if out.exists() and not (out.is_dir() and set(out.iterdir()) <= unfinished):
        raise CheckpointError(f"{out} exists and is not a checkpoint; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        former.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from error
    checkpoint.save_config(out, config, Text.train(config.text, train))


def learning_rate(options: TrainingConfig, update: int) -> float:
    """Return the learning rate of an update: a linear warm-up, then a linear decay to zero after the last update."""
    rising = min(1.0, (update + 1) / max(1, options.warmup))
    falling = (options.updates - update) / max(1, options.updates - options.warmup)
    return options.learning_rate * min(rising, falling)


def reinforce(log_probs: Tensor, choices: Tensor, baseline: float) -> Tensor:
    """Return the loss of hard attention's choices (Xu et al. 2015, https://arxiv.org/abs/1502.03044, equation 12).

        - sum_t (log p(y_t) - b) log pi(choice_t)

    The reward of a choice is the log-probability of its own token. The paper's entropy term is omitted, and so are its
    steps with expected weights in place of a sample.

    Shapes:
        log_probs (tokens), of the reference tokens; choices (tokens), log-probabilities of the chosen positions
    """
    return -((log_probs.detach() - baseline) * choices).sum()


class Trainer:
    """One training run, resumed from the state in `out` if there is one."""

    def __init__(self, config: Config, text: Text, out: Path, rank: int, world: int, init: Path | None = None) -> None:
        """Build the model and the optimizer, or load them.

        Args:
            config: the training configuration.
            text: text processing, which defines the vocabulary sizes.
            out: the checkpoint folder.
            rank: number of this process.
            world: number of processes.
            init: checkpoint of the first weights of a new run.

        Raises:
            CheckpointError: the state in `out` is damaged, or belongs to another model, or `init` does not fit.
        """
        self.options: TrainingConfig = config.training
        self.out, self.rank, self.world = out, rank, world
        torch.manual_seed(self.options.seed)
        self.model: Seq2Seq = checkpoint.make_model(config, text)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), self.options.learning_rate, betas=(0.9, 0.98), eps=1e-9, fused=True
        )
        self.average = Average(self.model, self.options.average)
        if (out / STATE).exists():
            self.progress = load_state(out, self.model, self.optimizer, self.average.weights)
        else:
            self.progress = Progress()
            if init is not None:
                copy_weights(init, self.model, text)
                self.average.restart()
        for group in self.optimizer.param_groups:
            group["initial_lr"] = self.options.learning_rate

    def fit(self, train: Pairs, valid: Pairs) -> None:
        """Train until the last update, or until validation stops improving.

        Raises:
            InputError: an epoch has fewer batches than there are processes, or a loss or gradient is not finite.
        """
        options, progress = self.options, self.progress
        quiet = True if self.rank else None  # None: shown if stderr is a terminal
        bar = tqdm(total=options.updates, initial=progress.update, unit="update", disable=quiet, file=sys.stderr)
        tokens, started = 0, time.monotonic()
        order = train.order(options.batch_tokens, (options.seed, progress.epoch))
        while progress.update < options.updates and progress.bad_validations < options.patience:
            if progress.batch + self.world > len(order):
                progress.epoch, progress.batch = progress.epoch + 1, 0
                order = train.order(options.batch_tokens, (options.seed, progress.epoch))
                if len(order) < self.world:
                    raise InputError(f"the data has {len(order)} batches an epoch, too few for {self.world} processes")
            batch = train.batch(order[progress.batch + self.rank])
            loss = self.update(batch)
            progress.batch += self.world
            progress.update += 1
            tokens += batch.tokens * self.world
            bar.update()
            rate = tokens / (time.monotonic() - started)
            bar.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} tokens/s", refresh=False)
            if progress.update % options.validate_every == 0 or progress.update == options.updates:
                with self.average.applied():
                    valid_loss = self.validate(valid)
                    best = self._record_validation(valid_loss)
                if self.rank == 0:
                    bar.write(
                        f"update {progress.update}, epoch {progress.epoch}: validation loss {valid_loss:.4f} a token"
                        f"{' (best)' if best else ''}, {rate:.0f} tokens/s",
                        file=sys.stderr,
                    )
            ended = progress.update == options.updates or progress.bad_validations >= options.patience
            if self.rank == 0 and (ended or progress.update % options.checkpoint_every == 0):
                save_state(self.out, self.model, self.optimizer, progress, self.average.weights)
        bar.close()

    def _record_validation(self, loss: float) -> bool:
        """Count the validation, save the model if its loss is the lowest, and return whether it is."""
        if not loss < self.progress.best:
            self.progress.bad_validations += 1
            return False
        self.progress.best, self.progress.bad_validations = loss, 0
        if self.rank == 0:
            checkpoint.save_model(self.out, self.model, self.options.storage)
        return True

    def update(self, batch: Batch) -> float:
        """Run one step of Adam with this process's batch, and return its loss per token.

        Raises:
            InputError: the gradient is not finite.
        """
        options, progress = self.options, self.progress
        torch.manual_seed(hash((options.seed, progress.update, self.rank)))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(options, progress.update)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=False)
        logits, expected, choices = self.forward_batch(batch)
        loss = nn.functional.cross_entropy(logits, expected, reduction="sum", label_smoothing=options.label_smoothing)
        objective, reward = loss, 0.0
        if choices is not None:
            log_probs = -nn.functional.cross_entropy(logits, expected, reduction="none")
            objective, reward = loss + reinforce(log_probs, choices, progress.baseline), float(log_probs.detach().sum())
        objective.backward()  # type: ignore[no-untyped-call]
        tokens, reward = self._all_reduce(float(batch.tokens), reward)
        if choices is not None:
            progress.baseline = 0.9 * progress.baseline + 0.1 * reward / tokens
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad /= tokens
        norm = nn.utils.clip_grad_norm_(parameters, options.clip)
        if not math.isfinite(float(norm)):
            raise InputError(
                f"the gradient is {float(norm)} at update {progress.update}; "
                f"lower training.learning_rate and start again"
            )
        self.optimizer.step()
        self.average.update(progress.update)
        return float(loss.detach()) / batch.tokens

    def forward_batch(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the model with teacher forcing.

        Returns:
            Logits (tokens, vocab) and ids (tokens) of the real target tokens, and with `hard_training = "reinforce"`
            the log-probabilities (tokens) of the chosen source positions.
        """
        real = batch.expected != PAD
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.compute == "bf16"):
            output = self.model.forward_teacher_forced(batch.source, batch.source_length, batch.target)
            logits = self.model.logits(output.features[real])
        choices = None if output.choices is None else output.choices[real].float()
        return logits.float(), batch.expected[real], choices

    def loss(self, batch: Batch, label_smoothing: float) -> Tensor:
        """Return the cross-entropy, summed over the real target tokens."""
        logits, expected, _ = self.forward_batch(batch)
        return nn.functional.cross_entropy(logits, expected, reduction="sum", label_smoothing=label_smoothing)

    def validate(self, valid: Pairs) -> float:
        """Return the cross-entropy per token of the validation pairs; each process computes its share of the batches.

        Raises:
            InputError: the loss is not finite.
        """
        self.model.eval()
        total, tokens = 0.0, 0
        with torch.no_grad():
            for indices in valid.order(self.options.batch_tokens, None)[self.rank :: self.world]:
                batch = valid.batch(indices)
                total += float(self.loss(batch, 0.0))
                tokens += batch.tokens
        if self.world > 1:
            summed = torch.tensor([total, tokens], dtype=torch.float64)
            dist.all_reduce(summed)
            total, tokens = float(summed[0]), int(summed[1])
        if not math.isfinite(total):
            raise InputError(
                f"the validation loss is {total} at update {self.progress.update}; lower training.learning_rate and "
                f"start again"
            )
        return total / tokens

    def _all_reduce(self, tokens: float, reward: float) -> tuple[float, float]:
        """Sum gradients, tokens and reward over the processes."""
        if self.world == 1:
            return tokens, reward
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor([tokens, reward])])
        dist.all_reduce(flat)
        parts = torch.split(flat[:-2], [g.numel() for g in gradients])
        for gradient, summed in zip(gradients, parts, strict=True):
            gradient.copy_(summed.view_as(gradient))
        return float(flat[-2]), float(flat[-1])
