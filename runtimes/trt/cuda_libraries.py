"""Where libcudart may lie: what `runtimes.cuda` opens and what `doctor` lists."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
TOOLKITS = ("usr/local/cuda/lib64", "usr/local/cuda-*/lib64")
"""Where a toolkit lies that the loader does not know, below /."""


def candidates(root: Path = Path("/")) -> Iterator[str]:
    """Where the loader looks, then the toolkits that are there, then the wheels that TensorRT's own wheel brings."""
    yield from NAMES
    for pattern in TOOLKITS:
        for folder in sorted(root.glob(pattern), reverse=True):
            yield from (str(folder / name) for name in NAMES if (folder / name).exists())
    found = importlib.util.find_spec("nvidia")
    for place in [] if found is None else found.submodule_search_locations or []:
        yield from map(str, sorted(Path(place).glob("*/lib/libcudart.so.*"), reverse=True))
