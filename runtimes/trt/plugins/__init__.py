"""Kernels of our own for TensorRT, each of which serves an op of the domain `edge_attn` in an engine.

A plugin is tried where it was asked for by name, and used where the device's own clock says that it wins
(runtimes/trt/autotune.py); the op's function body is always the fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edge_attn.errors import UsageError
from edge_attn.registry import resolve
from edge_attn.runtimes.trt.api import TensorRT

PLUGINS = {("AdditiveAttention", "trt"): "edge_attn.runtimes.trt.plugins.additive_attention:PLUGIN"}
"""What there is: (op, target) and where the plugin lives."""


@dataclass(frozen=True)
class Plugin:
    """An ahead-of-time plugin, which TensorRT finds by the node's name and domain."""

    op: str
    register: Callable[[TensorRT, str], None]
    """register(tensorrt, architecture): makes TensorRT know it before a network is parsed; architecture as "sm_87".
    Raises NotTestedError where that cannot be: this TensorRT has no plugins, or nothing here compiles the kernel."""
    hash: Callable[[], str]
    """Of everything that decides the kernel: part of an engine's key in the cache."""


def plugins_for(target: str, asked: Iterable[str]) -> dict[str, Plugin]:
    """The plugins of `target` that were asked for (--plugin), by op.

    Raises:
        UsageError: this target does not have one.
    """
    known = {op: row for (op, served), row in PLUGINS.items() if served == target}
    found = {}
    for op in sorted(asked):
        if op not in known:
            raise UsageError(
                f"there is no plugin {op!r} for the target {target!r}; known: {', '.join(sorted(known)) or 'none'}"
            )
        found[op] = resolve("plugin", known, op)
    return found
