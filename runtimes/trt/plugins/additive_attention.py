"""AdditiveAttention as one kernel (additive_attention.cu), an ahead-of-time plugin for TensorRT 10.13 and later.

Its PTX is stored in the engine, so that running the engine needs neither this file nor a compiler.

    query (batch, tgt, attn), keys (batch, src, attn), values (batch, src, value), mask (batch, src), v (attn)
    -> context (batch, tgt, value), weights (batch, tgt, src)
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from edge_attn.errors import NotTestedError
from edge_attn.ops import DOMAIN
from edge_attn.ops.additive import OP
from edge_attn.runtimes.trt.api import PluginModule, TensorDesc, TensorRT, TensorrtModule
from edge_attn.runtimes.trt.plugins import Plugin
from edge_attn.runtimes.trt.plugins.ptx import compile_ptx

PLUGIN_ID = f"{DOMAIN}::{OP.name}"
SOURCE = Path(__file__).with_name("additive_attention.cu")
KERNELS = {"fp32": "additive_attention_fp32", "fp16": "additive_attention_fp16"}
"""Kernel by precision. Each takes the op's inputs, the sizes tgt, src, attn, value (int32) and the op's outputs."""
BLOCKS = (64, 128, 256)
"""Threads per block, TensorRT's tactics, of which it measures the fastest; the grid is batch * tgt blocks."""
FLOATS = "FP32|FP16"
"""Types of floats; all floats of a call have the same."""
TYPES = ", ".join([*(FLOATS if kind == "T" else "BOOL" for kind in OP.inputs.values()), *(FLOATS for _ in OP.outputs)])
Outputs: TypeAlias = tuple[TensorDesc, TensorDesc]


@functools.cache
def ptx(architecture: str) -> bytes:
    """Return PTX of both kernels for `architecture`, as "sm_87".

    Raises:
        NotTestedError: there is no CUDA compiler whose PTX the driver takes, or none compiles for the architecture.
    """
    return compile_ptx(SOURCE.read_text(encoding="utf-8"), architecture)


def plugin_hash() -> str:
    """Return the hash of the source and of the code that compiles and launches it."""
    files = (SOURCE, Path(__file__), Path(__file__).with_name("ptx.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def register(tensorrt: TensorRT, architecture: str) -> None:
    """Register the plugin with TensorRT, before a network is parsed; again for another architecture.

    Args:
        tensorrt: TensorRT.
        architecture: architecture of the GPU for which the engine is built, as "sm_87".

    Raises:
        NotTestedError: this TensorRT has no such plugins, its package for them does not load, or there is no CUDA
            compiler whose PTX the driver takes.
    """
    if not tensorrt.capability.aot_plugins:
        raise NotTestedError(f"{tensorrt.name} takes no ahead-of-time plugin, expected TensorRT 10.13 or newer")
    compiled = ptx(architecture)
    try:
        plugin: PluginModule = importlib.import_module(f"{tensorrt.trt.__name__}.plugin")
    except (ImportError, OSError) as error:
        raise NotTestedError(f"the plugins of {tensorrt.name} do not load here: {error}") from error
    if not hasattr(getattr(plugin.op, DOMAIN, None), OP.name):
        plugin.register(PLUGIN_ID)(_describe(plugin))
    plugin.autotune(PLUGIN_ID)(_autotune(plugin))
    plugin.aot_impl(PLUGIN_ID)(_implement(plugin, tensorrt.trt, compiled))


PLUGIN = Plugin(OP.name, register, plugin_hash)


# Callbacks of TensorRT. It reads their signatures, with types that exist only once it is loaded: see _typed.


def _describe(plugin: PluginModule) -> Callable[..., Any]:
    def describe(
        query: TensorDesc, keys: TensorDesc, values: TensorDesc, mask: TensorDesc, v: TensorDesc
    ) -> tuple[TensorDesc, TensorDesc]:
        batch, tgt, _ = query.shape_expr
        context = plugin.from_shape_expr((batch, tgt, values.shape_expr[2]), query.dtype)
        weights = plugin.from_shape_expr((batch, tgt, keys.shape_expr[1]), query.dtype)
        return context, weights

    return _typed(plugin, describe, tuple[plugin.TensorDesc, plugin.TensorDesc])


def _autotune(plugin: PluginModule) -> Callable[..., Any]:
    def autotune(
        query: TensorDesc, keys: TensorDesc, values: TensorDesc, mask: TensorDesc, v: TensorDesc, outputs: Outputs
    ) -> list[Any]:
        return [plugin.AutoTuneCombination(TYPES, "LINEAR", BLOCKS)]

    return _typed(plugin, autotune, list[plugin.AutoTuneCombination])


def _implement(plugin: PluginModule, trt: TensorrtModule, compiled: bytes) -> Callable[..., Any]:
    kernels = {trt.DataType.FLOAT: KERNELS["fp32"], trt.DataType.HALF: KERNELS["fp16"]}

    def implement(
        query: TensorDesc,
        keys: TensorDesc,
        values: TensorDesc,
        mask: TensorDesc,
        v: TensorDesc,
        outputs: Outputs,
        tactic: int,
    ) -> tuple[str, bytes, Any, Any]:
        batch, tgt, attn = query.shape_expr
        sizes = (tgt, keys.shape_expr[1], attn, values.shape_expr[2])
        launch = plugin.KernelLaunchParams(grid_x=batch * tgt, block_x=tactic)
        arguments = plugin.SymIntExprs(len(sizes))
        for index, size in enumerate(sizes):
            arguments[index] = plugin.SymInt32(size)
        return kernels[query.dtype], compiled, launch, arguments

    return _typed(plugin, implement, tuple[str, bytes, plugin.KernelLaunchParams, plugin.SymIntExprs])


def _typed(plugin: PluginModule, function: Callable[..., Any], returns: Any) -> Callable[..., Any]:
    """Return `function` with TensorRT's own types in its signature, which TensorRT checks."""
    known = {"outputs": tuple[plugin.TensorDesc, plugin.TensorDesc], "tactic": int}
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    function.__annotations__ = {name: known.get(name, plugin.TensorDesc) for name in names} | {"return": returns}
    return function
