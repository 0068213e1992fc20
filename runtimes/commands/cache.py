"""`edge-attn cache list` and `edge-attn cache clear`: the engines that were built on this machine."""

from __future__ import annotations

import time
from pathlib import Path

from edge_attn.errors import InputError
from edge_attn.runtimes.trt.engine_cache import EngineCache, Entry, cache_folder


def list_cache(cache_dir: Path | None = None) -> str:
    """Return a text with one line for each engine, least recently used first, and a line with the total."""
    cache = EngineCache(cache_folder(cache_dir))
    entries = cache.entries()
    building = _being_built(sum(entry.building for entry in entries))
    return "\n".join([*map(_line, entries), f"{cache.folder}: {_engines(entries)}{building}"])


def clear_cache(cache_dir: Path | None = None) -> str:
    """Delete all engines that are not being built, and their measurements. Return a text with the total.

    Raises:
        InputError: an engine cannot be deleted.
    """
    cache = EngineCache(cache_folder(cache_dir))
    removed, errors = cache.clear()
    faults = [error for error in errors if not isinstance(error, BlockingIOError)]
    summary = f"{cache.folder}: removed {_engines(removed)}{_being_built(len(errors) - len(faults))}"
    if faults:
        raise InputError(f"{summary}; {len(faults)} cannot be removed: {faults[0].strerror}")
    return summary


def _line(entry: Entry) -> str:
    """Return the line of an engine in the list."""
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
    built_for = "  ".join(entry.parts.get(name, "?") for name in ("runtime", "gpu", "precision"))
    return f"{entry.size / 1e6:8.1f} MB  last used {used}  {entry.label}  {built_for}  {entry.digest}"


def _engines(entries: list[Entry]) -> str:
    """Return the number and the total size of the engines."""
    count, size = sum(entry.size > 0 for entry in entries), sum(entry.size for entry in entries)
    return f"{count} engine{'' if count == 1 else 's'}, {size / 1e6:.1f} MB"


def _being_built(count: int) -> str:
    return f"; {count} {'is' if count == 1 else 'are'} being built" if count else ""
