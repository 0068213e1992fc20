"""Access to a machine's files, commands, packages and libraries.

`doctor` reads a machine only through a Machine. `here()` is this machine. The tests build one from a recording, so that
boards that are not at hand run the same code.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_attn.runtimes.doctor import probes
from edge_attn.system_memory import read_text

TIMEOUT = 10.0
"""Seconds for a command."""
PROBE_TIMEOUT = 60.0
"""Seconds for a probe: loading CUDA's libraries is slow on a board that just booted."""
KILL_TIMEOUT = 2.0
"""Seconds for a killed process to end. One that waits for a driver may never end."""
NO_ANSWER = "no answer"
NO_COMMAND, TIMED_OUT = 127, 124
"""Exit codes, as a shell and `timeout` use them."""
CHILD = "import sys; sys.path[:] = sys.argv[2:]; from edge_attn.runtimes.doctor.probes import main; main(sys.argv[1])"


@dataclass(frozen=True)
class Machine:
    """Functions that read a machine."""

    read_text: Callable[[str], str]
    """Return a file's text without NUL bytes; empty if it cannot be read."""
    glob: Callable[[str], list[str]]
    """Return the matching paths, sorted."""
    run: Callable[..., tuple[int, str]]
    """Run a command; return its exit code and the text of both streams."""
    probe: Callable[[str], dict[str, Any]]
    """Return the result of a row of PROBES; {"error": ...} if it crashed or timed out."""


def here() -> Machine:
    """Return this machine. Each probe runs once."""
    return Machine(
        read_text,
        lambda pattern: sorted(map(str, Path("/").glob(pattern.lstrip("/")))),
        run,
        functools.lru_cache(maxsize=None)(probe),
    )


def run(*command: str, timeout: float = TIMEOUT) -> tuple[int, str]:
    """Run a command in the C locale, and kill it at the timeout.

    The output goes to a file: a pipe stays open as long as any child of the command lives.
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
            code = process.wait(timeout)
        except OSError:
            return NO_COMMAND, ""
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_TIMEOUT)
            return TIMED_OUT, ""
        output.seek(0)
        return code, output.read().decode(errors="replace").strip()


def probe(name: str, timeout: float = PROBE_TIMEOUT) -> dict[str, Any]:
    """Run a probe in a child process, so that a library that crashes or hangs is reported and does not end doctor.

    The child has the import path of this process. The probe runs in this process if no child can be started, as in a
    sandbox or an emulator.
    """
    code, output = run(sys.executable, "-c", CHILD, name, *sys.path, timeout=timeout)
    if code == NO_COMMAND:
        return probes.PROBES[name]()
    if code == TIMED_OUT:
        return {"error": f"{NO_ANSWER} within {timeout:.0f} s"}
    last_line = output.rpartition("\n")[2]
    if code != 0:
        return {"error": f"Python died with exit code {code} {last_line}".strip()}
    result: dict[str, Any] = json.loads(last_line)
    return result
