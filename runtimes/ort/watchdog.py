"""The watchdog of ONNX Runtime: it ends a run of a graph that takes too long, such as a loop that never ends."""

from __future__ import annotations

import threading
import time

import onnxruntime as ort

INTERVAL = 0.25
"""Seconds between two looks at the current runs."""


class Watchdog:
    """Ends runs that take longer than `seconds`. Any number of threads may run graphs at the same time.

    Its own thread sleeps while nothing runs. ONNX Runtime looks for the end between two nodes, also inside of a loop.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._runs: dict[int, tuple[float, ort.RunOptions]] = {}
        self._busy = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> ort.RunOptions:
        """Return the options of a run that starts now. Pass them to `end` when it has ended."""
        options = ort.RunOptions()
        options.log_severity_level = 4  # an error is raised, and is not printed too
        self._runs[id(options)] = (time.monotonic(), options)
        if self._thread is None or not self._thread.is_alive():  # the first run of this process, or of its fork
            self._busy = threading.Event()
            self._thread = threading.Thread(target=_watch, args=(self._runs, self._busy, self.seconds), daemon=True)
            self._thread.start()
        self._busy.set()
        return options

    def end(self, options: ort.RunOptions) -> None:
        """Stop watching a run."""
        self._runs.pop(id(options), None)


def _watch(runs: dict[int, tuple[float, ort.RunOptions]], busy: threading.Event, seconds: float) -> None:
    while True:
        busy.wait()
        busy.clear()
        while runs:
            time.sleep(INTERVAL)
            now = time.monotonic()
            for started, options in list(runs.values()):
                if now - started > seconds:
                    options.terminate = True
