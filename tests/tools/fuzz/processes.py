"""A case in a process of its own: its limits, and what must be true when it ends."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPU_SECONDS = 60
"""Processor time after which a case counts as a hang."""
WALL_SECONDS = 300
"""Time after which a case that uses little processor time counts as a hang."""
MEMORY = 4 << 30
"""Bytes that a case may allocate."""
CODES = (0, 1, 2, 3, 4)
OUTSIDE = "outside"
"""Folder beside those of a case that no file of the case may lead to."""


@dataclass(frozen=True)
class Ended:
    """How the process of a case ended."""

    status: int
    """Exit code, or the negative number of the signal that ended it."""
    errors: str
    """Text on standard error."""
    seconds: float
    """Processor time."""

    def fault(self) -> str | None:
        """Return what is wrong, or None."""
        if self.status == -signal.SIGXCPU:
            return f"did not end within {CPU_SECONDS} seconds of processor time"
        if self.status == -signal.SIGKILL:
            return f"was killed: it took {WALL_SECONDS} seconds, or more memory than there is"
        if self.status < 0:
            return f"was ended by the signal {signal.Signals(-self.status).name}"
        if breach := re.search(r"^fuzz: .*$", self.errors, re.MULTILINE):
            return breach[0]
        if self.status not in CODES:
            return f"exit code {self.status}"
        if "Traceback (most recent call last)" in self.errors:
            return "a traceback on standard error"
        lines = [line for line in self.errors.split("\n") if line.startswith("edge-attn: ")]
        if self.status >= 2 and len(lines) != 1:
            return f"exit code {self.status} with {len(lines)} error lines, expected one"
        if lines and (len(lines[0]) > 300 or not lines[0].isprintable()):
            return f"an error line of {len(lines[0])} characters, or with characters that cannot be printed"
        return None


def start(folder: Path, run: Callable[[], int]) -> int:
    """Start `run` in a child with its standard streams in files of `folder`, and return the id of the process."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder / "in")
        for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
            file = os.open(folder / name, os.O_RDWR | os.O_CREAT)
            os.dup2(file, descriptor)
            os.close(file)
        tempfile.tempdir = str(folder / "in")
        data = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (data + MEMORY, data + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(_auditor(folder))
        status = run()
    finally:
        os._exit(status)


def wait(child: int, folder: Path, started: float) -> Ended | None:
    """Return how a child ended, or None while it runs. One that only sleeps is killed after WALL_SECONDS."""
    done, status, usage = os.wait4(child, os.WNOHANG)
    if not done:
        if time.monotonic() - started > WALL_SECONDS:
            os.kill(child, signal.SIGKILL)
        return None
    errors = (folder / "stderr").read_text(encoding="utf-8", errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), errors, usage.ru_utime + usage.ru_stime)


def _auditor(folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that prints a line, which `Ended.fault` reads, for what no case may do."""
    root, outside = os.path.realpath(folder), os.path.realpath(folder / OUTSIDE)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.system", "os.exec", "socket.connect"):
            os.write(2, f"fuzz: {event} {arguments!r}\n".encode())
        if event != "open" or isinstance(arguments[0], int):
            return
        path, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[2] or 0
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if path.startswith(outside) or (writes and not path.startswith((root, "/dev/", "/proc/"))):
            os.write(2, f"fuzz: opened {path}\n".encode())

    return audit
