"""File of the tactics that TensorRT has measured, which makes the next build faster."""

from __future__ import annotations

import contextlib
from pathlib import Path

from edge_attn.runtimes.trt.api import IBuilderConfig, ITimingCache
from edge_attn.storage.atomic import write_bytes


def load_timing_cache(options: IBuilderConfig, path: Path) -> None:
    """Load the measurements of earlier builds, if there are any of this version."""
    try:
        measurements = path.read_bytes()
    except OSError:
        measurements = b""
    cache: ITimingCache = options.create_timing_cache(measurements)
    if (cache is None or not options.set_timing_cache(cache, False)) and measurements:
        empty: ITimingCache = options.create_timing_cache(b"")
        options.set_timing_cache(empty, False)


def save_timing_cache(options: IBuilderConfig, path: Path) -> None:
    """Store the measurements of a build. Without them the next build takes longer."""
    cache: ITimingCache = options.get_timing_cache()
    if cache is not None:
        with contextlib.suppress(OSError):
            write_bytes(path, bytes(cache.serialize()))
