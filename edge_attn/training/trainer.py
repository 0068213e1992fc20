"""The optimization of one run: updates, validations, and the states from which it resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edge_attn import checkpoint
from edge_attn.config.training import Config, TrainingConfig
from edge_attn.errors import InputError
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import PAD
from edge_attn.training.averaging import Average
from edge_attn.training.data import Batch, Pairs
from edge_attn.training.device import choose_compute
from edge_attn.training.initial_weights import copy_weights
from edge_attn.training.journal import Journal
from edge_attn.training.state import STATE, Progress, load_state, save_state
from edge_attn.training.translations import ValidationSentences

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Place of a process in a run. None of them changes the checkpoint's configuration."""

    rank: int = 0
    """Number of this process."""
    world: int = 1
    """Number of processes."""
    device: torch.device = CPU
    init: Path | None = None
    """Checkpoint of the first weights of a new run."""


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

    def __init__(self, config: Config, text: Text, out: Path, run: RunOptions | None = None) -> None:
        """Build the model and the optimizer, or load them.

        Args:
            config: the training configuration.
            text: text processing, which defines the vocabulary sizes.
            out: the checkpoint folder.
            run: processes, device and first weights.

        Raises:
            CheckpointError: the state in `out` is damaged, or belongs to another model, or `run.init` does not fit.
        """
        run = run or RunOptions()
        self.options: TrainingConfig = config.training
        self.out, self.text, self.rank, self.world, self.device = out, text, run.rank, run.world, run.device
        self.compute = choose_compute(config.training.compute, run.device)
        self.limit = config.data.max_tokens
        torch.manual_seed(self.options.seed)
        self.model: Seq2Seq = checkpoint.make_model(config, text).to(run.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), self.options.learning_rate, betas=(0.9, 0.98), eps=1e-9, fused=True
        )
        self.average = Average(self.model, self.options.average)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=self.compute == "fp16")
        if (out / STATE).exists():
            self.progress = load_state(out, self.model, self.optimizer, self.average.weights)
            if self.progress.scale:
                scale = {"scale": self.progress.scale, "_growth_tracker": self.progress.scale_age}
                self.scaler.load_state_dict({**self.scaler.state_dict(), **scale})
        else:
            self.progress = Progress()
            if run.init is not None:
                copy_weights(run.init, self.model, text)
                self.average.restart()
        for group in self.optimizer.param_groups:
            group["initial_lr"] = self.options.learning_rate

    def describe(self) -> str:
        """Return the model's family, cell, attention and number of weights."""
        config = self.model.config
        count = sum(value.numel() for value in checkpoint.named_weights(self.model).values())
        return f"{config.family}, {config.cell}, attention {config.attention}, {count:,} weights"

    def fit(self, train: Pairs, valid: Pairs, sentences: ValidationSentences, journal: Journal) -> None:
        """Train until the last update, or until validation stops improving.

        Args:
            train: training pairs.
            valid: validation pairs.
            sentences: validation sentences that are translated.
            journal: output of the run.

        Raises:
            InputError: an epoch has fewer batches than there are processes, or a loss or gradient is not finite.
            KeyboardInterrupt: a signal, after the update and with the state saved.
        """
        options, progress = self.options, self.progress
        tokens, losses, started = 0, [0.0, 0.0], time.monotonic()
        order = train.order(options.batch_tokens, (options.seed, progress.epoch))
        with _delayed_signals() as check_signals:
            while progress.update < options.updates and progress.bad_validations < options.patience:
                if progress.batch + self.world > len(order):
                    progress.epoch, progress.batch = progress.epoch + 1, 0
                    order = train.order(options.batch_tokens, (options.seed, progress.epoch))
                    if len(order) < self.world:
                        raise InputError(
                            f"the data has {len(order)} batches an epoch, too few for {self.world} processes"
                        )
                batch = train.batch(order[progress.batch + self.rank])
                loss = self.update(batch)
                progress.batch += self.world
                progress.update += 1
                tokens += batch.tokens * self.world
                losses[0], losses[1] = losses[0] + loss * batch.tokens, losses[1] + batch.tokens
                seconds = time.monotonic() - started
                journal.advance(loss, tokens / seconds)
                if progress.update % options.validate_every == 0 or progress.update == options.updates:
                    row = {"seconds": seconds, "target_tokens": tokens, "training_loss": losses[0] / losses[1]}
                    self._validate(valid, sentences, journal, row)
                    losses = [0.0, 0.0]
                ended = progress.update == options.updates or progress.bad_validations >= options.patience
                if self.rank == 0 and (ended or progress.update % options.checkpoint_every == 0):
                    self._save()
                if signal_number := check_signals():
                    if self.rank == 0 and not ended:
                        self._save()
                    journal.print(
                        f"stopped at update {progress.update} by {signal.Signals(signal_number).name}; "
                        f"the state is saved: resume with the same command"
                    )
                    break

    def _validate(self, valid: Pairs, sentences: ValidationSentences, journal: Journal, row: dict[str, float]) -> None:
        """Validate the averaged weights, save them if they are the best, and report."""
        progress = self.progress
        with self.average.applied():
            loss = self.validate(valid)
            best = self._record_validation(loss)
            scores = sentences.score(self.model, self.text, self.limit) if self.rank == 0 else None
        journal.validation(
            {
                **row,
                "update": progress.update,
                "epoch": progress.epoch,
                "learning_rate": learning_rate(self.options, progress.update - 1),
                "validation_loss": loss,
                "best": best,
            },
            scores,
            sentences.pairs,
            row["target_tokens"] / row["seconds"],
        )

    def _save(self) -> None:
        if self.scaler.is_enabled():
            state = self.scaler.state_dict()
            self.progress.scale, self.progress.scale_age = float(state["scale"]), int(state["_growth_tracker"])
        save_state(self.out, self.model, self.optimizer, self.progress, self.average.weights)

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
        self.scaler.scale(objective).backward()  # type: ignore[no-untyped-call]
        tokens, reward = self._all_reduce(float(batch.tokens), reward)
        self.scaler.unscale_(self.optimizer)
        if choices is not None:
            progress.baseline = 0.9 * progress.baseline + 0.1 * reward / tokens
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad /= tokens
        norm = nn.utils.clip_grad_norm_(parameters, options.clip)
        if not math.isfinite(float(norm)) and not self.scaler.is_enabled():  # the scaler omits such an update
            raise InputError(
                f"the gradient is {float(norm)} at update {progress.update}; "
                f"lower training.learning_rate and start again"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(progress.update)
        return float(loss.detach()) / batch.tokens

    def forward_batch(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the model with teacher forcing.

        Returns:
            Logits (tokens, vocab) and ids (tokens) of the real target tokens, and with `hard_training = "reinforce"`
            the log-probabilities (tokens) of the chosen source positions.
        """
        source, length, target, expected = (
            value.to(self.device) for value in (batch.source, batch.source_length, batch.target, batch.expected)
        )
        real = expected != PAD
        dtype = torch.float16 if self.compute == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, dtype, enabled=self.compute != "fp32"):
            output = self.model.forward_teacher_forced(source, length, target)
            logits = self.model.logits(output.features[real])
        choices = None if output.choices is None else output.choices[real].float()
        return logits.float(), expected[real], choices

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
            summed = torch.tensor([total, tokens], dtype=torch.float64, device=self.device)
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
        flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor([tokens, reward], device=self.device)])
        dist.all_reduce(flat)
        parts = torch.split(flat[:-2], [g.numel() for g in gradients])
        for gradient, summed in zip(gradients, parts, strict=True):
            gradient.copy_(summed.view_as(gradient))
        return float(flat[-2]), float(flat[-1])


@contextlib.contextmanager
def _delayed_signals() -> Iterator[Callable[[], int]]:
    """Delay SIGINT, SIGTERM and SIGHUP inside the block, so that an update is never cut in two.

    Yields a function that returns the number of the signal that arrived, or 0. It has to be called after each update;
    after it has returned a number, the block has to end, and the signal is sent again to its former handler. A second
    SIGINT acts at once.
    """
    arrived, former = 0, {}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        if arrived and number == signal.SIGINT:
            raise KeyboardInterrupt
        arrived = number

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # ignored under nohup; None: not from Python
                former[number] = signal.signal(number, note)
    try:
        yield lambda: arrived
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived)
