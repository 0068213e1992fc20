"""edge-attn: an attention seq2seq model from PyTorch to the edge, and the proof that it still says the same thing.

    >>> import edge_attn
    >>> model = edge_attn.load("bundle")
    >>> model.translate(["I am cold."])[0].text

Importing it loads neither torch, onnx nor a runtime. It tells ONNX Runtime, which from 1.29 on reports to Microsoft by
itself, not to (ORT_DISABLE_TELEMETRY, where the environment does not say).
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it once, when it begins

__all__ = ["__version__", "export_module", "load"]
__version__ = "0.1.0"


def load(
    bundle: str | os.PathLike[str],
    runtime: str = "ort-cpu",
    threads: int | None = None,
    precision: str = "fp32",
    allow_fallback: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """The bundle at `bundle` (a folder or its zip), ready for its task on `runtime`.

    The options are those of `RuntimeOptions`, edge_attn/config/training.py.

    Raises:
        BundleError: it is not a bundle, or was damaged.
        UsageError: no such runtime, or one that does not serve this precision.
        NotTestedError: the runtime is not installed, or the bundle has no graphs of this precision for it.
    """
    from pathlib import Path

    from edge_attn.bundle.bundle import Bundle
    from edge_attn.config.runtime import RuntimeOptions
    from edge_attn.registry import TASKS, resolve

    folder = None if cache_dir is None else Path(cache_dir)
    options = RuntimeOptions(threads, precision, allow_fallback, folder)
    opened = Bundle.open(bundle)
    return resolve("task", TASKS, opened.manifest.task)(opened, runtime, options)


def export_module(module: Any, out: Any, inputs: Any, outputs: Any) -> Any:
    """Exports a torch module built from edge-attn's layers to an ONNX file; see export/pipeline.py, export_module."""
    from edge_attn.registry import SERVICES, resolve

    return resolve("service", SERVICES, "export module")(module, out, inputs, outputs)
