"""Paths of libcudart, for the CUDA binding and for `doctor`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
TOOLKITS = ("usr/local/cuda/lib64", "usr/local/cuda-*/lib64")
"""Folders of CUDA toolkits that the loader does not search, relative to the root folder."""


def libcudart_paths(root: Path = Path("/")) -> Iterator[str]:
    """Yield the names that the loader searches, then installed toolkits, then the wheels on which TensorRT depends."""
    yield from NAMES
    for pattern in TOOLKITS:
        for toolkit in sorted(root.glob(pattern), reverse=True):
            yield from (str(toolkit / name) for name in NAMES if (toolkit / name).exists())
    package = importlib.util.find_spec("nvidia")
    for folder in [] if package is None else package.submodule_search_locations or []:
        yield from map(str, sorted(Path(folder).glob("*/lib/libcudart.so.*"), reverse=True))
