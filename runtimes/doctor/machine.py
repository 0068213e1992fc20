"""The seam between `doctor` and the machine: every file, command, package and library is asked for through a Machine.

`here()` is the machine that this runs on. A recorded one answers the same questions from a file, so that boards that
are not at hand drive the same code.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_attn.runtimes.doctor import probes as doctor_probes
from edge_attn.runtimes.system_memory import read_text
from edge_attn.runtimes.trt.engine_cache import cache_folder

TIMEOUT = 10.0
"""Seconds for a command."""
PROBE_TIMEOUT = 60.0
"""Seconds for a probe: on a board that just booted, loading CUDA's libraries takes many of them."""
GRACE = 2.0
"""Seconds for what was killed to end; what left the group, or waits for a driver, may never."""
SILENT = "no answer"
NOT_FOUND, TOO_SLOW = 127, 124
"""Exit codes, as a shell and `timeout` have them."""

CHILD = "import sys; sys.path[:] = sys.argv[2:]; from edge_attn.runtimes.doctor.probes import main; main(sys.argv[1])"


@dataclass(frozen=True)
class Usage:
    """Of the folder of engines, and of the disk that it lies on or would lie on; sizes in bytes."""

    folder: str
    engines: int
    size: int
    """Of all files in it."""
    free: int
    writable: bool


@dataclass(frozen=True)
class Machine:
    """What can be asked of a machine."""

    read_text: Callable[[str], str]
    """A file, without NUL bytes; empty where there is none or it cannot be read."""
    glob: Callable[[str], list[str]]
    """Paths, sorted."""
    run: Callable[..., tuple[int, str]]
    """A command's exit code and what it said on both streams; 127 where there is none, 124 where it took too long."""
    probe: Callable[[str], dict[str, Any]]
    """A row of doctor_probes.PROBES; {"error": ...} where it died or took too long."""
    usage: Callable[[], Usage]
    """Raises InputError where nobody knows what that folder is."""


def here() -> Machine:
    """This machine. Each command and probe runs once, however often it is asked for."""
    return Machine(
        read_text,
        lambda pattern: sorted(map(str, Path("/").glob(pattern.lstrip("/")))),
        functools.lru_cache(maxsize=None)(run),
        functools.lru_cache(maxsize=None)(probe),
        usage,
    )


def run(*command: str, timeout: float = TIMEOUT) -> tuple[int, str]:
    """The command's exit code and output, in the C locale. It is killed with its group when time is up."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except OSError:
        return NOT_FOUND, ""
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _killed(process)
        return TOO_SLOW, ""
    return process.returncode, out.decode(errors="replace").strip()


def _killed(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    try:
        process.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        if process.stdout is not None:
            process.stdout.close()
        process.poll()


def probe(name: str, timeout: float = PROBE_TIMEOUT) -> dict[str, Any]:
    """What the probe found, in a process of its own: a library that crashes or hangs is a finding, not our end.

    The child looks for packages exactly where this process does. Nothing is started for a module that is absent, and
    where no process can be started (a sandbox, an emulator) the probe runs in this one.
    """
    module = doctor_probes.MODULES.get(name)
    if module is None or not doctor_probes.is_there(module):
        return doctor_probes.PROBES[name]()
    code, out = run(sys.executable, "-c", CHILD, name, *sys.path, timeout=timeout)
    if code == NOT_FOUND:
        return doctor_probes.PROBES[name]()
    if code == TOO_SLOW:
        return {"error": f"{SILENT} within {timeout:.0f} s"}
    lines = out.splitlines()
    said = next((line for line in reversed(lines) if line.startswith("{")), "")
    if code != 0 or not said:
        return {"error": f"Python died with exit code {code}{f': {lines[-1]}' if lines else ''}"}
    found: dict[str, Any] = json.loads(said)
    return found


def usage() -> Usage:
    """Files that vanish meanwhile are not counted."""
    folder = cache_folder(None)
    names, sizes = [], []
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                sizes.append((Path(place) / name).lstat().st_size)
            except OSError:
                continue
            names.append(name)
    existing = folder / "engines"
    while not os.path.exists(existing) and existing != existing.parent:  # noqa: PTH110  # never raises
        existing = existing.parent
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    engines = sum(name.endswith(".engine") for name in names)
    return Usage(str(folder), engines, sum(sizes), shutil.disk_usage(existing).free, writable)
