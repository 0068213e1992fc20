"""Progress of a build, and its time limit."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from edge_attn.runtimes.trt.api import TensorRT

ProgressCallback = Callable[[float, str], None]
"""Receives the completed fraction of a build, from 0 to 1, and the name of the current phase."""


@dataclass
class Phase:
    """A part of a build. Phases are nested, and each is one step of its parent."""

    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """Phases of one build, which several threads of TensorRT may update.

    `cancelled` is the reason why the build was stopped: `time`, `keyboard`, or the error of a callback.
    """

    def __init__(self, report: ProgressCallback, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.cancelled = ""
        self._report, self._clock, self._end = report, clock, clock() + seconds
        self._phases: dict[str, Phase] = {}
        self._reported = 0.0
        self._lock = threading.RLock()  # reentrant: an interruption may call the methods again

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> bool:
        """Record a completed step. Return False to stop the build."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = min(step + 1, self._phases[name].steps)
            self._reported = max(self._reported, self._fraction())
            self._report(self._reported, name)
        if not self.cancelled and self._clock() > self._end:
            self.cancelled = "time"
        return not self.cancelled

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def _fraction(self) -> float:
        """Return the completed fraction of the outermost phase. An inner phase is a part of its parent's step."""
        inner: dict[str | None, float] = {}
        for phase in reversed(self._phases.values()):
            name = next(key for key, value in self._phases.items() if value is phase)
            fraction = min(1.0, (phase.done + min(inner.get(name, 0.0), 1.0)) / phase.steps)
            inner[phase.parent] = max(inner.get(phase.parent, 0.0), fraction)
        return inner.get(None, 0.0)


def progress_monitor(tensorrt: TensorRT, progress: BuildProgress) -> Any:
    """Return TensorRT's monitor for `progress`. An exception stops the build, because TensorRT cannot propagate it."""
    trt = tensorrt.trt

    def guarded(call: Callable[..., Any], *arguments: Any) -> Any:
        """Call a method. Its exception stops the build at the next step."""
        try:
            return call(*arguments)
        except KeyboardInterrupt:
            progress.cancelled = "keyboard"
        except Exception as error:
            progress.cancelled = f"{type(error).__name__}: {error}"
        return False

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # the class is only known at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            guarded(progress.start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return bool(guarded(progress.step, phase_name, step))

        def phase_finish(self, phase_name: str) -> None:
            guarded(progress.finish, phase_name)

    return Monitor()


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[ProgressCallback]:
    """Show a progress bar with the remaining time on standard error, if that is a terminal."""
    with tqdm(
        total=100,
        desc=label,
        unit="%",
        file=sys.stderr,
        disable=None,
        leave=False,
        bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}",
    ) as bar:

        def report(fraction: float, phase: str) -> None:
            bar.set_postfix_str(phase, refresh=False)
            bar.update(100 * fraction - bar.n)

        yield report
