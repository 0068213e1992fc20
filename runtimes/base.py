"""Opening what runs: a bundle on a runtime of the table, or a checkpoint on torch, the reference."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import BundleError, NotTestedError, UsageError
from edge_attn.registry import PRECISIONS, RUNTIME_PRECISIONS, RUNTIMES, resolve
from edge_attn.spec import GraphSpec, Runtime

DEFAULT = RuntimeOptions()


def open_runtime(bundle: Bundle, name: str, options: RuntimeOptions = DEFAULT) -> Runtime:
    """The bundle on the runtime `name`.

    Raises:
        UsageError: no such runtime, or torch, which runs checkpoints; a precision that the runtime does not serve.
        NotTestedError: the runtime is not installed, or the bundle has no graphs of this precision for it.
    """
    if name == "torch":
        raise UsageError(f"the runtime torch runs a checkpoint, and {bundle.path} is a bundle")
    check_precision(name, options)
    try:
        made: Runtime = resolve("runtime", RUNTIMES, name)(bundle, options)
    except ImportError as error:
        raise NotTestedError(f"the runtime {name} does not load here: {error}") from error
    _check(bundle.path, made.graphs)
    return made


def check_precision(name: str, options: RuntimeOptions) -> None:
    """Refuses a precision that the runtime `name` never serves."""
    served = RUNTIME_PRECISIONS.get(name, PRECISIONS)
    if options.precision not in served:
        raise UsageError(f"the runtime {name} serves {', '.join(served)}, got precision {options.precision!r}")


def _check(path: Path, graphs: Mapping[str, GraphSpec]) -> None:
    """The graphs have what the search asks of them."""
    for name in ("encoder", "step"):
        if name not in graphs:
            raise BundleError(f"{path}: a seq2seq bundle needs the graph {name!r}")
    states, memory = graphs["step"].names("state."), graphs["step"].names("memory.")
    needed = {
        "encoder": [*memory, *states],
        "step": ["log_probs", "candidates", "candidate_ids", *(f"next_{state}" for state in states)],
    }
    for name, tensors in needed.items():
        outputs = {tensor.name for tensor in graphs[name].outputs}
        for tensor in tensors:
            if tensor not in outputs:
                raise BundleError(f"{path}: the graph {name!r} has no output {tensor!r}, which a seq2seq bundle needs")


def check_attention(runtime: Runtime, wanted: str) -> None:
    """Refuses a model without attention weights for `wanted`, which reads them."""
    if not any(tensor.name == "alignment" for tensor in runtime.graphs["step"].outputs):
        raise UsageError(f"{wanted} needs attention weights, and this model has no attention")


def is_checkpoint(path: Path) -> bool:
    return all(os.path.isfile(path / name) for name in ("model.safetensors", "config.json"))  # noqa: PTH113  # never raises
