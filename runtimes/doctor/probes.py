"""Probes: facts that only loading a library shows, about this Python, CUDA's driver, TensorRT and ONNX Runtime.

Each probe returns plain values. It runs in a child process (machine.py) and imports its library by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any

from edge_attn.errors import InputError
from edge_attn.runtimes.trt.cuda_libraries import libcudart_paths
from edge_attn.runtimes.trt.engine_cache import cache_folder
from edge_attn.versions import OLDEST, is_too_old

GRAPH = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)
"""ONNX model y = x + x of one float (IR version 8, opset 18)."""
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
"""Providers of ONNX Runtime that edge-attn uses."""
COMPUTE_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


def main(name: str) -> None:
    """Print a probe's result as one line of JSON, and exit before any library is unloaded."""
    print("\n" + json.dumps(PROBES[name]()), flush=True)
    os._exit(0)


def python() -> dict[str, Any]:
    """Return this interpreter, its packages of ONNX Runtime and TensorRT, and the versions of other libraries."""
    packages, libraries = set(), {}
    for package in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", str(package.metadata["Name"] or "")).lower()
        if name.startswith(("onnxruntime", "tensorrt")):
            packages.add((name, package.version, str(package.locate_file(""))))
        elif name.replace("-", "_") in OLDEST:
            libraries[name.replace("-", "_")] = package.version
    return {
        "version": platform.python_version(),
        "architecture": platform.machine(),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "packages": sorted(map(list, packages)),
        "libraries": libraries,
    }


def cuda() -> dict[str, Any]:
    """Return the driver's CUDA version and devices, and the version of each libcudart; 12060 stands for 12.6."""
    result: dict[str, Any] = {"devices": [], "runtimes": []}
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        code = driver.cuInit(0)
        if code == 0:
            result["driver"] = _int(driver.cuDriverGetVersion)
            result["devices"] = [_device(driver, index) for index in range(_int(driver.cuDeviceGetCount))]
        else:
            result["error"] = f"cuInit returned CUDA error {code}"
    except (OSError, AttributeError) as error:
        result["error"] = str(error)
    for name in libcudart_paths():
        with contextlib.suppress(OSError, AttributeError):
            version = _int(ctypes.CDLL(name).cudaRuntimeGetVersion)
            if version not in result["runtimes"]:
                result["runtimes"].append(version)
    return result


def _int(function: Any, *arguments: Any) -> int:
    """Return the integer that a function of CUDA writes to its first argument."""
    value = ctypes.c_int()
    function(ctypes.byref(value), *arguments)
    return value.value


def _device(driver: Any, index: int) -> dict[str, Any]:
    device = _int(driver.cuDeviceGet, index)
    size, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    capability = [_int(driver.cuDeviceGetAttribute, attribute, device) for attribute in COMPUTE_CAPABILITY]
    return {"name": name.value.decode(errors="replace"), "capability": capability, "memory": size.value}


def _import(name: str) -> dict[str, Any]:
    """Return the module's version and file, or why it does not load; nothing if it is absent."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a damaged library may raise anything
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == name
        return {} if is_absent else {"error": f"{type(error).__name__}: {error}"}
    return {"version": str(getattr(module, "__version__", "")), "file": str(getattr(module, "__file__", ""))}


def onnxruntime() -> dict[str, Any]:
    """Return the module, the providers that run a graph, and why the others of this build do not."""
    result = _import("onnxruntime")
    if "version" not in result or is_too_old("onnxruntime", result["version"]):
        return result
    module = importlib.import_module("onnxruntime")
    listed = module.get_available_providers()
    errors = {provider: _provider_error(module, provider) for provider in (CPU, CUDA) if provider in listed}
    runs = [provider for provider, error in errors.items() if not error]
    return {**result, "runs": runs, "reasons": {provider: error for provider, error in errors.items() if error}}


def _provider_error(module: Any, provider: str) -> str:
    """Return why the provider does not run a graph of one node; empty if it does."""
    import numpy as np

    from edge_attn.runtimes.ort.cuda import FAILURE, provider_fault

    fault = provider_fault(provider)
    if fault is not None:
        return fault.partition("; ")[0]
    try:
        session = module.InferenceSession(GRAPH, providers=list(dict.fromkeys([provider, CPU])), enable_fallback=0)
        session.run(None, {"x": np.ones(1, np.float32)})
    except Exception as error:  # ONNX Runtime's errors share no class but Exception
        failure = FAILURE.search(str(error))
        return failure[0].strip() if failure else f"{type(error).__name__}: {error}"
    return "" if provider in session.get_providers() else "the session does not use it"


def cache() -> dict[str, Any]:
    """Return the folder of the engine cache, the free bytes of its disk, and True if the user may write there."""
    try:
        folder = existing = cache_folder(None) / "engines"
    except InputError as error:  # the user has no home folder
        return {"error": str(error)}
    while not os.path.exists(existing) and existing != existing.parent:  # noqa: PTH110  # never raises
        existing = existing.parent
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return {"folder": str(folder.parent), "free": shutil.disk_usage(existing).free, "writable": writable}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "python": python,
    "cuda": cuda,
    "tensorrt": lambda: _import("tensorrt"),
    "tensorrt_rtx": lambda: _import("tensorrt_rtx_bindings"),
    "onnxruntime": onnxruntime,
    "cache": cache,
}
