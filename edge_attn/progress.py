"""Progress of what takes seconds: a bar on a terminal, and a line of the logger `edge_attn` for each stage.

A command opens `stages`. Code below it begins each `stage`, and wraps the items that it works through in `track`; both
need no argument for the command that runs them. Nothing is shown where standard error is no terminal, or where the
logger hides warnings.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger("edge_attn")
"""Logger of the whole package: INFO has one line a stage, WARNING the warnings. Errors are exceptions."""

_label: contextvars.ContextVar[str] = contextvars.ContextVar("label", default="")
"""Current stage, which `track` shows; empty outside of `stages`."""
_stages: contextvars.ContextVar[Stages | None] = contextvars.ContextVar("stages", default=None)


def is_shown() -> bool:
    """Return whether bars are shown: on a terminal, unless the logger hides warnings."""
    return sys.stderr is not None and sys.stderr.isatty() and logger.isEnabledFor(logging.WARNING)


class StderrHandler(logging.Handler):
    """Handler that prints messages on the current standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message, a warning with its level."""
        if sys.stderr is None:
            return
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = prefix + record.getMessage()
        if tqdm := sys.modules.get("tqdm"):
            tqdm.tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr)


def print_messages(verbosity: str) -> None:
    """Print the messages of the logger on standard error: "quiet" errors, "verbose" all, "" warnings and errors."""
    logger.setLevel({"quiet": logging.ERROR, "verbose": logging.INFO}.get(verbosity, logging.WARNING))
    if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
        logger.addHandler(StderrHandler())


def bar(label: str = "", total: float | None = None, unit: str = "it", **options: Any) -> Any:
    """Return a tqdm bar on standard error, which is hidden where that is no terminal and in quiet commands.

    Args:
        label: text before the bar.
        total: number of items; None if it is not known.
        unit: name of the items.
        options: further arguments of tqdm.
    """
    from tqdm import tqdm

    options = {"leave": False, "dynamic_ncols": True, "disable": not is_shown(), **options}
    return tqdm(desc=label or None, total=total, unit=unit, file=sys.stderr, **options)


class Stages:
    """Counts the stages of a command, on its bar and in the log."""

    def __init__(self, verb: str, total: int | None, shown: Any) -> None:
        self.total = total
        self._verb, self._shown, self._number, self._start = verb, shown, 0, time.monotonic()

    def begin(self, name: str) -> None:
        """Begin the next stage."""
        self._number += 1
        _label.set(f"  {name}")
        count = f" {self._number}/{self.total}" if self.total else ""
        logger.info("%s%s: %s (%.1f s)", self._verb, count, name, time.monotonic() - self._start)
        self._shown.set_description_str(f"{self._verb}{count}: {name}", refresh=False)
        self._shown.refresh()


@contextlib.contextmanager
def stages(verb: str, total: int | None = None) -> Iterator[None]:
    """Show the stages that the block, or the decorated function, begins with `stage`.

    Args:
        verb: name of the whole.
        total: number of stages; None if only the block knows it (`expect_stages`), or nobody.
    """
    with bar(verb, bar_format="{desc} [{elapsed}]") as shown:
        tokens = _label.set(verb), _stages.set(Stages(verb, total, shown))
        try:
            yield
        finally:
            _label.reset(tokens[0])
            _stages.reset(tokens[1])


def expect_stages(total: int) -> None:
    """Set the number of stages of the command that runs."""
    current = _stages.get()
    if current is not None:
        current.total = total


def stage(name: str) -> None:
    """Begin the next stage of the command that runs; nothing happens outside of `stages`."""
    current = _stages.get()
    if current is not None:
        current.begin(name)


def track(items: Iterable[T], total: int, size: Callable[[T], int], unit: str = " sentences") -> Iterator[T]:
    """Yield items of a stage while a bar counts them. Without a stage, as in calls from Python, there is no bar.

    Args:
        items: items, such as batches of sentences.
        total: sum of the sizes of all items.
        size: number of units in an item.
        unit: name of a unit.
    """
    label = _label.get()
    if not label:
        yield from items
        return
    with bar(label, total, unit, delay=0.3) as shown:
        for item in items:
            yield item
            shown.update(size(item))
