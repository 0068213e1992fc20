"""How far a build is, and the end of one that takes too long."""

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

Report = Callable[[float, str], None]
"""Called with the share that is done, from 0 to 1, and what is being done."""


@dataclass
class Phase:
    """A part of the build; TensorRT nests them, and each counts as one step of its parent."""

    parent: str | None
    steps: int
    done: int = 0


class Progress:
    """The phases of one build, told by any of TensorRT's threads.

    `cancelled` becomes why the build was ended: `time`, `keyboard`, or what went wrong here.
    """

    def __init__(self, report: Report, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.cancelled = ""
        self._report, self._clock, self._end = report, clock, clock() + seconds
        self._phases: dict[str, Phase] = {}
        self._least = 0.0
        self._lock = threading.RLock()  # an interruption may come in again

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> bool:
        """False ends the build."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = min(step + 1, self._phases[name].steps)
            self._least = max(self._least, self._share())
            self._report(self._least, name)
        if not self.cancelled and self._clock() > self._end:
            self.cancelled = "time"
        return not self.cancelled

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def _share(self) -> float:
        """Of the outermost phase; a phase inside counts for the part of its parent's step that is done."""
        inner: dict[str | None, float] = {}
        for phase in reversed(self._phases.values()):
            name = next(key for key, value in self._phases.items() if value is phase)
            share = min(1.0, (phase.done + min(inner.get(name, 0.0), 1.0)) / phase.steps)
            inner[phase.parent] = max(inner.get(phase.parent, 0.0), share)
        return inner.get(None, 0.0)


def monitor(tensorrt: TensorRT, progress: Progress) -> Any:
    """`progress` as TensorRT calls it. An interruption ends the build first: it may not pass through TensorRT."""
    trt = tensorrt.trt

    def kept(call: Callable[..., Any], *said: Any) -> Any:
        """An exception becomes the reason for which the build is ended at its next step."""
        try:
            return call(*said)
        except KeyboardInterrupt:
            progress.cancelled = "keyboard"
        except Exception as error:
            progress.cancelled = f"{type(error).__name__}: {error}"
        return False

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # the class is found at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            kept(progress.start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return bool(kept(progress.step, phase_name, step))

        def phase_finish(self, phase_name: str) -> None:
            kept(progress.finish, phase_name)

    return Monitor()


@contextlib.contextmanager
def bar(what: str) -> Iterator[Report]:
    """A bar on standard error with the time that is left, where somebody looks at it."""
    with tqdm(
        total=100,
        desc=what,
        unit="%",
        file=sys.stderr,
        disable=None,
        leave=False,
        bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}",
    ) as shown:

        def report(share: float, doing: str) -> None:
            shown.set_postfix_str(doing, refresh=False)
            shown.update(100 * share - shown.n)

        yield report
