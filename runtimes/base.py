"""Open a bundle on one of the runtimes."""

from __future__ import annotations

import os
from pathlib import Path

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.errors import NotTestedError, UsageError
from edge_attn.parity.task import Task
from edge_attn.registry import PRECISIONS, RUNTIME_PRECISIONS, RUNTIMES, TASKS, resolve
from edge_attn.spec import Runtime


def open_runtime(bundle: Bundle, name: str, options: RuntimeOptions = DEFAULT) -> Runtime:
    """Return the bundle on the runtime `name`.

    Raises:
        UsageError: an unknown runtime, or torch, which runs checkpoints; a precision that the runtime does not support.
        NotTestedError: the runtime is not installed, or the bundle has no graphs of this precision for it.
        BundleError: the graphs lack an input or output that the bundle's task needs.
    """
    if name == "torch":
        raise UsageError(f"the runtime torch runs a checkpoint, and {bundle.path} is a bundle")
    check_precision(name, options)
    try:
        runtime: Runtime = resolve("runtime", RUNTIMES, name)(bundle, options)
    except ImportError as error:
        raise NotTestedError(f"the runtime {name} does not load here: {error}") from error
    task: Task = resolve("task", TASKS, bundle.manifest.task)
    task.check_graphs(runtime.graphs, str(bundle.path))
    return runtime


def check_precision(name: str, options: RuntimeOptions) -> None:
    """Check that the runtime `name` supports the precision.

    Raises:
        UsageError: it does not.
    """
    supported = RUNTIME_PRECISIONS.get(name, PRECISIONS)
    if options.precision not in supported:
        known = [runtime for runtime, precisions in RUNTIME_PRECISIONS.items() if options.precision in precisions]
        todo = (
            f"; {options.precision} is for {', '.join(known)}, once edge-attn optimize has written it" if known else ""
        )
        raise UsageError(
            f"the runtime {name} supports {', '.join(supported)}, got `precision` {options.precision!r}{todo}"
        )


def is_checkpoint(path: Path) -> bool:
    """Return whether `path` is a checkpoint folder."""
    return all(os.path.isfile(path / name) for name in ("model.safetensors", "config.json"))  # noqa: PTH113  # never raises
