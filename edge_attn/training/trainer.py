"""`edge-attn train`: from a configuration and pairs of sentences to a checkpoint.

A run is a function of its configuration, its data, its thread count and its number of processes: the batches of an
epoch come from (seed, epoch), the dropout of an update from (seed, update, process). So a run that was killed resumes
from its last state and ends in the very weights of one that was not.
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
from edge_attn.config.validation import from_mapping
from edge_attn.errors import CheckpointError, ConfigError, InputError, UsageError
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.storage.atomic import leftovers
from edge_attn.text.corpus import read_pairs
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import PAD
from edge_attn.training.data import Batch, Pairs, choose_samples


@dataclasses.dataclass
class Progress:
    """Where a run stands; saved with its state."""

    update: int = 0
    epoch: int = 0
    batch: int = 0
    best: float = math.inf
    worse: int = 0
    """Validations since the best."""
    baseline: float = 0.0
    """Of the reward of hard attention: a moving average of log p of the right tokens."""


def train(config_path: Path, out: Path, data: Path | None = None, threads: int | None = None) -> None:
    """Trains what `config_path` describes into the checkpoint `out`, or goes on with the run that `out` holds.

    Under torchrun each process takes its share of every update's batches (gloo).

    Raises:
        UsageError: `threads` is less than one.
        ConfigError, InputError: the configuration or the data cannot be used.
        CheckpointError: `out` holds a run of another configuration.
    """
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    config = read_config(config_path)
    _check_model(config, config_path)
    with _processes() as (rank, world):
        train_pairs, valid_pairs = _read(config.data, data or config_path.parent)
        text = _prepare(config, out, train_pairs, valid_pairs, rank)
        run = Trainer(config, text, out, rank, world)
        limit = config.data.max_tokens
        run.go(Pairs.encode(text, train_pairs, limit), Pairs.encode(text, valid_pairs, limit))


def _check_model(config: Config, path: Path) -> None:
    """What only the modules know of the options that they are made with, before anything is written."""
    try:
        with torch.device("meta"):
            Seq2Seq(config.model, 5, 5)
    except ConfigError as error:
        raise ConfigError(f"{path}: model: {error}") from error


@contextlib.contextmanager
def _processes() -> Iterator[tuple[int, int]]:
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
        raise InputError(f"{folder / config.train} has {len(pairs)} pairs, data.holdout asks for {config.holdout}")
    return pairs[: -config.holdout], pairs[-config.holdout :]


def _prepare(config: Config, out: Path, train: list[tuple[str, str]], valid: list[tuple[str, str]], rank: int) -> Text:
    """The text of the run, trained by the first process and read by all."""
    if rank == 0:
        _claim(config, out, train)
        if not (out / checkpoint.SAMPLES).exists():
            text, limit = checkpoint.load_text(out), config.data.max_tokens
            sources = [source for source, _ in valid if len(text.encode_source(source)) <= limit]
            checkpoint.save_samples(out, choose_samples(text, sources))
    if dist.is_initialized():
        dist.barrier()
    return checkpoint.load_text(out)


def _claim(config: Config, out: Path, train: list[tuple[str, str]]) -> None:
    """Finds in `out` a run of this configuration, or nothing, and then writes its configuration and text there.

    A run may be given more updates than it had: it goes on from where it stands, at the rate of the longer run.
    """
    if (out / checkpoint.CONFIG).exists():
        held = checkpoint.load_config(out)
        updates = max(held.training.updates, config.training.updates)
        longer = dataclasses.replace(held, training=dataclasses.replace(held.training, updates=updates))
        if longer != config:
            raise CheckpointError(
                f"{out} holds a run of another configuration; choose another --out, or remove it "
                f"(only training.updates may grow)"
            )
        if held != config:
            checkpoint.save_config(out, config, checkpoint.load_text(out))
        return
    unfinished = {out / "text", *leftovers(out / checkpoint.CONFIG)}
    if out.exists() and not (out.is_dir() and set(out.iterdir()) <= unfinished):
        raise CheckpointError(f"{out} exists and is not a checkpoint; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from error
    kind = config.text
    checkpoint.save_config(out, config, Text.train(kind.kind, train, kind.source_size, kind.target_size))


def learning_rate(options: TrainingConfig, update: int) -> float:
    """It rises linearly over the warm-up, and then falls linearly, to zero past the last update."""
    rising = min(1.0, (update + 1) / max(1, options.warmup))
    falling = (options.updates - update) / max(1, options.updates - options.warmup)
    return options.learning_rate * min(rising, falling)


def reinforce(log_probs: Tensor, choices: Tensor, baseline: float) -> Tensor:
    """What teaches a hard attention to choose (after Xu et al. 2015, https://arxiv.org/abs/1502.03044, equation 12).

    - sum_t (log p(y_t) - b) log pi(choice_t): the reward of a choice is what its own token gained by it. The paper's
    entropy term is not there, nor its steps with expected weights in place of a sample.

    Shapes:
        log_probs (tokens), of the right tokens, choices (tokens), log-probabilities of what was chosen
    """
    return -((log_probs.detach() - baseline) * choices).sum()


class Trainer:
    """One training run."""

    def __init__(self, config: Config, text: Text, out: Path, rank: int, world: int) -> None:
        self.options: TrainingConfig = config.training
        self.out, self.rank, self.world = out, rank, world
        torch.manual_seed(self.options.seed)
        self.model: Seq2Seq = checkpoint.make_model(config, text)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), self.options.learning_rate, betas=(0.9, 0.98), eps=1e-9, fused=True
        )
        self.progress = Progress()
        if (out / checkpoint.STATE).exists():
            saved = checkpoint.load_state(out, self.model, self.optimizer)
            try:
                self.progress = from_mapping(Progress, saved, str(out / checkpoint.STATE))
            except ConfigError as error:
                raise CheckpointError(str(error)) from error
        for group in self.optimizer.param_groups:
            group["initial_lr"] = self.options.learning_rate

    def go(self, train: Pairs, valid: Pairs) -> None:
        """Updates until the last, or until validation no longer improves."""
        options, at = self.options, self.progress
        quiet = True if self.rank else None
        bar = tqdm(total=options.updates, initial=at.update, unit="update", disable=quiet, file=sys.stderr)
        tokens, started = 0, time.monotonic()
        order = train.order(options.batch_tokens, (options.seed, at.epoch))
        while at.update < options.updates and at.worse < options.patience:
            if at.batch + self.world > len(order):
                at.epoch, at.batch = at.epoch + 1, 0
                order = train.order(options.batch_tokens, (options.seed, at.epoch))
                if len(order) < self.world:
                    raise InputError(f"the data gives {len(order)} batches, too few for {self.world} processes")
            batch = train.batch(order[at.batch + self.rank])
            loss = self.update(batch)
            at.batch += self.world
            at.update += 1
            tokens += batch.tokens * self.world
            bar.update()
            rate = tokens / (time.monotonic() - started)
            bar.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} tokens/s", refresh=False)
            if at.update % options.validate_every == 0 or at.update == options.updates:
                found = self.validate(valid)
                better = found < at.best
                at.best, at.worse = (found, 0) if better else (at.best, at.worse + 1)
                if self.rank == 0:
                    if better:
                        checkpoint.save_model(self.out, self.model, options.storage)
                    bar.write(
                        f"update {at.update}, epoch {at.epoch}: validation loss {found:.4f} a token"
                        f"{' (best)' if better else ''}, {rate:.0f} tokens/s",
                        file=sys.stderr,
                    )
            ended = at.update == options.updates or at.worse >= options.patience
            if self.rank == 0 and (ended or at.update % options.checkpoint_every == 0):
                checkpoint.save_state(self.out, self.model, self.optimizer, dataclasses.asdict(at))
        bar.close()

    def update(self, batch: Batch) -> float:
        """One step of Adam on this process's batch; gives its loss a token."""
        options, at = self.options, self.progress
        torch.manual_seed(hash((options.seed, at.update, self.rank)))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(options, at.update)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=False)
        logits, expected, choices = self.taught(batch)
        loss = nn.functional.cross_entropy(logits, expected, reduction="sum", label_smoothing=options.label_smoothing)
        objective, reward = loss, 0.0
        if choices is not None:
            log_probs = -nn.functional.cross_entropy(logits, expected, reduction="none")
            objective, reward = loss + reinforce(log_probs, choices, at.baseline), float(log_probs.detach().sum())
        objective.backward()  # type: ignore[no-untyped-call]
        tokens, reward = self._share(float(batch.tokens), reward)
        if choices is not None:
            at.baseline = 0.9 * at.baseline + 0.1 * reward / tokens
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad /= tokens
        norm = nn.utils.clip_grad_norm_(parameters, options.clip)
        if not math.isfinite(float(norm)):
            raise InputError(
                f"the gradient is {float(norm)} at update {at.update}; lower training.learning_rate and start again"
            )
        self.optimizer.step()
        return float(loss.detach()) / batch.tokens

    def taught(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of the real target tokens: logits (tokens, vocab), ids (tokens), and where hard attention is trained by
        reward the log-probability of what it chose (tokens)."""
        real = batch.expected != PAD
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.compute == "bf16"):
            taught = self.model.forward_teacher_forced(batch.source, batch.source_length, batch.target)
            logits = self.model.logits(taught.features[real])
        choices = None if taught.choices is None else taught.choices[real].float()
        return logits.float(), batch.expected[real], choices

    def loss(self, batch: Batch, label_smoothing: float) -> Tensor:
        """Cross-entropy summed over the real target tokens."""
        logits, expected, _ = self.taught(batch)
        return nn.functional.cross_entropy(logits, expected, reduction="sum", label_smoothing=label_smoothing)

    def validate(self, valid: Pairs) -> float:
        """Cross-entropy a token on the validation pairs, each process taking its share of the batches."""
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

    def _share(self, tokens: float, reward: float) -> tuple[float, float]:
        """Sums gradients, tokens and reward over the processes."""
        if self.world == 1:
            return tokens, reward
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor([tokens, reward])])
        dist.all_reduce(flat)
        parts = torch.split(flat[:-2], [g.numel() for g in gradients])
        for gradient, summed in zip(gradients, parts, strict=True):
            gradient.copy_(summed.view_as(gradient))
        return float(flat[-2]), float(flat[-1])
