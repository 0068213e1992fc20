"""CUDA kernels as TensorRT plugins, each for one op of the domain `edge_attn`.

A plugin is built into an engine if `optimize --plugin` names its op, and runs if `optimize --build` measured that it is
faster (runtimes/trt/autotune.py). The function body of the op is always the fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edge_attn.errors import UsageError
from edge_attn.registry import resolve
from edge_attn.runtimes.trt.api import TensorRT

PLUGINS = {("AdditiveAttention", "trt"): "edge_attn.runtimes.trt.plugins.additive_attention:PLUGIN"}
"""Plugins by (op, target), as "module:attribute"."""


@dataclass(frozen=True)
class Plugin:
    """Ahead-of-time plugin, which TensorRT looks up by the op and domain of a node."""

    op: str
    register: Callable[[TensorRT, str], None]
    """register(tensorrt, architecture) registers the plugin with TensorRT, before a network is parsed; architecture as
    "sm_87". It raises NotTestedError if this TensorRT takes no such plugins or nothing here compiles the kernel."""
    hash: Callable[[], str]
    """Return the hash of everything that determines the kernel; part of an engine's key in the cache."""


def plugins_for(target: str, ops: Iterable[str]) -> dict[str, Plugin]:
    """Return the plugins of `target` for these ops.

    Raises:
        UsageError: this target does not have a plugin for one of them.
    """
    known = {op: row for (op, owner), row in PLUGINS.items() if owner == target}
    plugins = {}
    for op in sorted(ops):
        if op not in known:
            raise UsageError(
                f"there is no plugin {op!r} for the target {target!r}; known: {', '.join(sorted(known)) or 'none'}"
            )
        plugins[op] = resolve("plugin", known, op)
    return plugins
