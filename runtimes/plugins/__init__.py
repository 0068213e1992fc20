"""Kernels of our own for TensorRT, each of which serves an op of the domain `edge_attn` in an engine.

A plugin is used only where a measurement says that it wins (SERVED), or where it is asked for by name; the op's
function body is always the fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edge_attn.errors import UsageError
from edge_attn.registry import resolve
from runtimes.trt_compat import Door

PLUGINS = {("AdditiveAttention", "trt"): "runtimes.plugins.additive_attention:PLUGIN"}
"""What there is: (op, target) and where the plugin lives."""
SERVED: dict[tuple[str, str], str] = {}
"""The rows of PLUGINS that are used without being asked for, because a measurement says that they win. None: nothing
was measured on a GPU yet."""


@dataclass(frozen=True)
class Plugin:
    """An ahead-of-time plugin, which TensorRT finds by the node's name and domain."""

    op: str
    register: Callable[[Door, str], None]
    """register(door, architecture): makes TensorRT know it before a network is parsed; architecture as "sm_87". Raises
    NotTestedError where that cannot be."""
    hash: Callable[[], str]
    """Of everything that decides the kernel: part of an engine's key in the cache."""


def plugins_for(target: str, asked: Iterable[str] = ()) -> dict[str, Plugin]:
    """The plugins that serve an engine for `target`, by op: those that win, and those that were asked for (--plugin).

    Raises:
        UsageError: one was asked for that this target does not have.
    """
    rows = {op: row for (op, served), row in SERVED.items() if served == target}
    known = {op: row for (op, served), row in PLUGINS.items() if served == target}
    for op in asked:
        if op not in known:
            raise UsageError(
                f"there is no plugin {op!r} for the target {target!r}; known: {', '.join(sorted(known)) or 'none'}"
            )
        rows[op] = known[op]
    table = {op: rows[op] for op in sorted(rows)}
    return {op: resolve("plugin", table, op) for op in table}
