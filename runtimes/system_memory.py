"""Memory of this machine, or of the container that limits it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """In bytes."""

    total: int
    available: int
    """What a new process can have, swap not counted; no more than the container's limit leaves."""
    swap: int
    limited: bool
    """A container's limit is what counts."""


def read_text(path: str) -> str:
    try:
        return Path(path).read_bytes().replace(b"\0", b"\n").decode(errors="replace").strip()
    except OSError:
        return ""


def memory(read_text: Callable[[str], str] = read_text) -> Memory | None:
    """None where /proc/meminfo cannot be read."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", read_text("/proc/meminfo"), re.MULTILINE)
    sizes = {name: int(size) * 1024 for name, size in lines}
    if "MemAvailable" not in sizes:
        return None
    limit, used, stat = (read_text(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current", "stat"))
    available = sizes["MemAvailable"]
    limited = False
    if limit.isdigit() and used.isdigit():
        files = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)  # given back to whoever needs memory
        left = int(limit) - int(used) + int(files[1] if files else 0)
        limited, available = left < available, max(min(left, available), 0)
    return Memory(sizes.get("MemTotal", 0), available, sizes.get("SwapTotal", 0), limited)
