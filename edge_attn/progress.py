"""Progress of what takes seconds: a bar on a terminal, and a line of the logger `edge_attn` for each stage.

A command opens `stages`; code below it that works through items wraps them in `track`, which needs no argument for the
command that runs it. Nothing is shown where standard error is no terminal, or where the logger hides warnings.
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


def bar(label: str = "", total: float | None = None, unit: str = "it", **options: Any) -> Any:
    """Return a tqdm bar on standard error, which is hidden where that is no terminal and in quiet commands.

    Args:
        label: text before the bar.
        total: number of items; None if it is not known.
        unit: name of the items.
        options: further arguments of tqdm.
    """
    from tqdm import tqdm

    hidden = sys.stderr is None or not logger.isEnabledFor(logging.WARNING)
    options = {"leave": False, "dynamic_ncols": True, "disable": True if hidden else None, **options}
    return tqdm(desc=label or None, total=total, unit=unit, file=sys.stderr, **options)


@contextlib.contextmanager
def stages(verb: str, total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that begins the next of `total` stages, which a bar counts."""
    start, number = time.monotonic(), 0
    token = _label.set(verb)
    with bar(verb, total, " stages", bar_format="{desc} |{bar:20}| {n_fmt}/{total_fmt} [{elapsed}]") as shown:

        def begin(name: str) -> None:
            nonlocal number
            number += 1
            _label.set(f"  {name}")
            logger.info("%s %d/%d: %s (%.1f s)", verb, number, total, name, time.monotonic() - start)
            shown.set_description_str(f"{verb}: {name}", refresh=False)
            shown.n = number - 1
            shown.refresh()

        try:
            yield begin
        finally:
            _label.reset(token)


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
