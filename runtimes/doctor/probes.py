"""What `doctor` can only learn by loading something: this Python, CUDA's driver, TensorRT, ONNX Runtime.

Each probe gives plain values. Those that load a foreign library run in a process of their own (machine.py);
they find their modules by name, so nothing here is loaded before it is asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge_attn.runtimes.trt.cuda_libraries import libcudart_paths

MODULES = {
    "cuda": "ctypes",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt_rtx_bindings",
    "onnxruntime": "onnxruntime",
}
"""The module that each probe loads; the others load nothing."""

GRAPH = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)
"""An ONNX model, y = x + x over one float (IR version 8, opset 18)."""
TRIED = ("CPUExecutionProvider", "CUDAExecutionProvider")
"""The providers that edge-attn uses."""

GPU_FILES = ("dev/nvmap", "dev/nvidiactl", "dev/dri/renderD*")
"""Below /."""
COMPUTE_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


def main(name: str) -> None:
    """Prints what the probe found in JSON, on a line of its own, and ends before any library is unloaded."""
    print("\n" + json.dumps(PROBES[name]()), flush=True)
    os._exit(0)


def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def python() -> dict[str, Any]:
    """This interpreter, where it looks for packages, and the packages that `doctor` knows something about."""
    packages = set()
    for found in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", str(found.metadata["Name"] or "")).lower()
        if name.startswith(("onnxruntime", "ort-nightly", "tensorrt", "numpy", "edge-attn")):
            packages.add((name, found.version, str(found.locate_file(""))))
    return {
        "version": platform.python_version(),
        "architecture": platform.machine(),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "path": list(sys.path),
        "packages": sorted(map(list, packages)),
        "denied": list(_denied()),
    }


def _denied(root: Path = Path("/")) -> Iterator[str]:
    """The GPU's files that this user may not even read."""
    for pattern in GPU_FILES:
        yield from (str(path) for path in sorted(root.glob(pattern)) if not os.access(path, os.R_OK))


def cuda() -> dict[str, Any]:
    """The driver's CUDA version and devices, and each libcudart with its version; a version is 12060 for 12.6."""
    found: dict[str, Any] = {"devices": [], "runtimes": []}
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        code = driver.cuInit(0)
        if code == 0:
            found["driver"] = _version(driver.cuDriverGetVersion)
            found["devices"] = list(_devices(driver))
        else:
            found["code"] = code
            found["error"] = f"cuInit gave CUDA error {code}"
    except (OSError, AttributeError) as error:
        found["error"] = str(error)
    for name in libcudart_paths():
        with contextlib.suppress(OSError, AttributeError):
            version = _version(ctypes.CDLL(name).cudaRuntimeGetVersion)
            if version not in [known["version"] for known in found["runtimes"]]:
                found["runtimes"].append({"name": name, "version": version})
    return found


def _version(ask: Any) -> int:
    version = ctypes.c_int()
    ask(ctypes.byref(version))
    return version.value


def _devices(driver: Any) -> Iterator[dict[str, Any]]:
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        device, size, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        capability = []
        for attribute in COMPUTE_CAPABILITY:
            number = ctypes.c_int()
            driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
            capability.append(number.value)
        yield {"name": name.value.decode(errors="replace"), "capability": capability, "memory": size.value}


def tensorrt() -> dict[str, Any]:
    return _imported(MODULES["tensorrt"])


def tensorrt_rtx() -> dict[str, Any]:
    return _imported(MODULES["tensorrt_rtx"])


def _imported(name: str) -> dict[str, Any]:
    """The module's version and file, or why it does not load; nothing where it is absent."""
    if not is_there(name):
        return {}
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever a broken install raises is what we came for
        return {"error": f"{type(error).__name__}: {error}"}
    return {"version": str(getattr(module, "__version__", "")), "file": str(getattr(module, "__file__", ""))}


def onnxruntime() -> dict[str, Any]:
    """The module; which providers it lists, which of them run a graph, and what the others said."""
    found = _imported(MODULES["onnxruntime"])
    if "version" not in found:
        return found
    module = importlib.import_module(MODULES["onnxruntime"])
    if not hasattr(module, "InferenceSession"):
        return {**found, "error": "the module onnxruntime is there, but empty: it has no InferenceSession"}
    if hasattr(module, "preload_dlls"):  # the CUDA libraries of wheels
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses
            module.preload_dlls()
    found["listed"] = list(module.get_available_providers())
    found["runs"], found["reasons"] = [], {}
    for provider in TRIED:
        if provider in found["listed"]:
            reason = _tried(module, provider)
            if reason is None:
                found["runs"].append(provider)
            else:
                found["reasons"][provider] = reason
    return found


def _tried(module: Any, provider: str) -> str | None:
    """Why the provider does not run a graph of one node; None where it does."""
    import numpy as np

    said: list[str] = []
    try:
        with _standard_error(said):
            session = module.InferenceSession(GRAPH, providers=list(dict.fromkeys([provider, TRIED[0]])))
            loaded = session.get_providers()
            result = session.run(None, {"x": np.ones(1, np.float32)})[0][0]
    except Exception as error:  # ONNX Runtime's errors share no class but Exception
        return _reason(str(error))
    if provider not in loaded:
        return _reason("".join(said)) or f"the session has only {', '.join(loaded)}"
    return None if result == 2 else f"1 + 1 gave {result}"


@contextlib.contextmanager
def _standard_error(said: list[str]) -> Iterator[None]:
    """What C++ code prints there goes into `said`."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


def _reason(text: str) -> str:
    """The part of ONNX Runtime's message that says what is missing."""
    found = re.search(r"with error: ([^\n]+)", text) or re.search(r"((?:CUDA|CUBLAS|CUDNN) failure [^;\n]+)", text)
    line = found[1] if found else next((line for line in text.splitlines() if line.strip()), "")
    return line.strip()[:300]


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "python": python,
    "cuda": cuda,
    "tensorrt": tensorrt,
    "tensorrt_rtx": tensorrt_rtx,
    "onnxruntime": onnxruntime,
}
