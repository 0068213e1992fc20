"""What a training run tells its user: a start table, a line and samples at each validation, log.csv, TensorBoard."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_attn.checkpoint import write_file
from edge_attn.errors import MissingExtraError
from edge_attn.progress import bar, logger
from edge_attn.training.translations import ValidationScores

LOG = "log.csv"
COLUMNS = (
    *("update", "epoch", "seconds", "target_tokens", "learning_rate", "training_loss"),
    *("validation_loss", "bleu", "chrf", "best"),
)
SAMPLES = 3
"""Translations printed at each validation."""


class Journal:
    """Output of one run. Only the first process has a visible one."""

    def __init__(self, out: Path, total: int, done: int, visible: bool, tensorboard: Path | None = None) -> None:
        """Open the bar and, for the first process, the log.

        Args:
            out: checkpoint folder, which contains log.csv.
            total: updates of the complete run.
            done: updates that are done. Rows of log.csv after them, of a killed run, are dropped.
            visible: True for the first process.
            tensorboard: folder for TensorBoard's event files.

        Raises:
            MissingExtraError: TensorBoard is requested and not installed.
        """
        self.visible = visible
        self._path = out / LOG
        self._rows = _read_rows(self._path, done) if visible else []
        self._writer = _open_tensorboard(tensorboard) if visible and tensorboard is not None else None
        hidden = {} if visible else {"disable": True}
        self._bar = bar("train", total, " updates", initial=done, leave=True, **hidden)

    def print(self, line: str) -> None:
        """Print a line on standard error, above the bar, unless the command is quiet."""
        if self.visible and logger.isEnabledFor(30):
            self._bar.write(line, file=_standard_error())

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print the start table, a (name, value) a line."""
        for name, value in rows:
            self.print(f"{name:<12}{value}")

    def advance(self, loss: float, rate: float) -> None:
        """Show one more update, its loss a token and the speed in target tokens a second."""
        self._bar.update()
        self._bar.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} tokens/s", refresh=False)

    def validation(
        self, row: dict[str, Any], scores: ValidationScores | None, pairs: Sequence[tuple[str, str]], rate: float
    ) -> None:
        """Print a validation with its samples, and add it to log.csv and TensorBoard.

        Args:
            row: values of the columns of log.csv, without the scores.
            scores: scores of the translated sentences.
            pairs: (source, reference) of the translated sentences.
            rate: target tokens a second.
        """
        if not self.visible:
            return
        bleu, chrf = (scores.bleu, scores.chrf) if scores else (None, None)
        figures = [f"validation loss {row['validation_loss']:.4f} a token{' (best)' if row['best'] else ''}"]
        figures += [f"{name} {value:.1f}" for name, value in (("BLEU", bleu), ("chrF", chrf)) if value is not None]
        self.print(f"update {row['update']}, epoch {row['epoch']}: {', '.join(figures)}, {rate:.0f} tokens/s")
        translations = scores.translations if scores else []
        for index in range(0, len(translations), max(1, math.ceil(len(translations) / SAMPLES))):
            source, reference = pairs[index]
            self.print(f"    {source}\n      model      {translations[index]}\n      reference  {reference}")
        self._rows.append(
            {
                name: _cell(value)
                for name, value in {**row, "bleu": bleu, "chrf": chrf, "best": int(row["best"])}.items()
            }
        )
        write_file(self._path, _csv(self._rows))
        if self._writer is not None:
            for name in COLUMNS[4:-1]:
                value = {**row, "bleu": bleu, "chrf": chrf}[name]
                if value is not None:
                    self._writer.add_scalar(name, value, row["update"])
            self._writer.flush()

    def close(self) -> None:
        """Close the bar and TensorBoard's file."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()


def _standard_error() -> Any:
    import sys

    return sys.stderr if sys.stderr is not None else io.StringIO()


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _csv(rows: Sequence[dict[str, str]]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def _read_rows(path: Path, done: int) -> list[dict[str, str]]:
    """Return the rows of log.csv up to update `done`; none of a missing file or one with other columns."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if row["update"].isdigit() and int(row["update"]) <= done]
            return rows if tuple(reader.fieldnames or ()) == COLUMNS else []
    except (OSError, ValueError, KeyError, AttributeError, TypeError, csv.Error):
        return []


def _open_tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "tensorboard") from error
    return SummaryWriter(str(folder))
