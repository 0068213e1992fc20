"""Version numbers, and the oldest supported version of each package."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from typing import Any

from edge_attn.errors import NotTestedError

OLDEST = {
    "numpy": (1, 24),
    "sentencepiece": (0, 2),
    "onnxruntime": (1, 18),  # reads IR version 10; the extras ask for one that current Pythons have
    "onnx": (1, 17),
    "onnxscript": (0, 5),
    "onnx_ir": (0, 1),
    "torch": (2, 9),
    "safetensors": (0, 4),
    "sacrebleu": (2, 4),
    "h5py": (3, 10),
}
"""Oldest supported version by module. TensorRT's is in runtimes/trt/api.py."""


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with: (10, 3, 0) for `10.3.0rc1`, empty for a text without any."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def is_too_old(name: str, version: str) -> bool:
    """Return whether a version of the module `name` is older than the oldest supported one. An unknown one is not."""
    numbers = parse_version(version)
    return bool(numbers) and numbers < OLDEST[name]


def advice(name: str) -> str:
    """Return what is needed of the module `name`, and the command that installs it."""
    oldest = ".".join(map(str, OLDEST[name]))
    packages = importlib.metadata.packages_distributions().get(name) or [name.replace("_", "-")]
    return f"{oldest} or later is needed; run: pip install --upgrade '{packages[-1]}>={oldest}'"


def require(*names: str) -> None:
    """Check that modules load and are not too old. A module that is absent is left to the code that imports it.

    Raises:
        NotTestedError: a module does not load, or is too old. The message contains the next command.
    """
    for name in names:
        try:
            module: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise NotTestedError(f"{name} does not load here: {error}; {advice(name)}") from error
            continue
        except Exception as error:  # a library that does not fit another one may raise anything
            raise NotTestedError(f"{name} does not load here: {error}; {advice(name)}") from error
        version = str(getattr(module, "__version__", ""))
        if is_too_old(name, version):
            raise NotTestedError(f"{name} {version} is too old: {advice(name)}")
