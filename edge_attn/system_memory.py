"""Memory of this machine, within the limit of its container."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SystemMemory:
    """Sizes in bytes."""

    total: int
    available: int
    """Memory that a new process can use, without swap, within the limit of the container."""
    swap: int
    limited: bool
    """True if the limit of a container determines `available`."""


def read_text(path: str) -> str:
    """Return the text of a system file, empty if it cannot be read."""
    try:
        return Path(path).read_bytes().replace(b"\0", b"\n").decode(errors="replace").strip()
    except OSError:
        return ""


def system_memory(read_text: Callable[[str], str] = read_text) -> SystemMemory | None:
    """Return the memory, or None if /proc/meminfo cannot be read."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", read_text("/proc/meminfo"), re.MULTILINE)
    sizes = {name: int(size) * 1024 for name, size in lines}
    if "MemAvailable" not in sizes:
        return None
    limit, used, stat = (read_text(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current", "stat"))
    available = sizes["MemAvailable"]
    limited = False
    if limit.isdigit() and used.isdigit():
        file_cache = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)  # file cache, which the system can reclaim
        left = int(limit) - int(used) + int(file_cache[1] if file_cache else 0)
        limited, available = left < available, max(min(left, available), 0)
    return SystemMemory(sizes.get("MemTotal", 0), available, sizes.get("SwapTotal", 0), limited)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Let an allocation of more memory than this machine has fail, as a MemoryError, instead of ending the process.

    Without it Linux grants the memory, and ends the process that uses it. Does nothing on other systems.
    """
    memory, used = system_memory(), _data_size()
    if memory is None or used is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [used + memory.available + memory.swap, *(x for x in (soft, hard) if x != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_size() -> int | None:
    """Return the bytes that this process has allocated, which its RLIMIT_DATA counts."""
    size = re.search(r"^VmData:\s+(\d+) kB$", read_text("/proc/self/status"), re.MULTILINE)
    return int(size[1]) * 1024 if size else None
