"""SIGTERM and SIGHUP end a command like Ctrl-C: what it has begun is removed or saved, and nothing partial is left."""

from __future__ import annotations

import signal
import time
from types import FrameType

REPEATS = 2.0
"""Seconds in which a repeated signal is ignored: a closed terminal sends SIGHUP twice, and the first one cleans up."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to stop. Code that handles Ctrl-C handles it too."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def raise_on_signals() -> None:
    """Raise `Stopped` in the main thread at SIGTERM and SIGHUP, unless they are ignored, as under nohup."""
    stopped = -REPEATS

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if time.monotonic() - stopped >= REPEATS:
            stopped = time.monotonic()
            raise Stopped(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, stop)


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the exit code that a shell gives to a process that the signal ended."""
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)
