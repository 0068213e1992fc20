"""Description of the machine of a GPU benchmark: names, versions, and the peak speed of its GPU."""

from __future__ import annotations

import ctypes
import datetime
import importlib
import importlib.metadata
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_attn import __version__
from edge_attn.spec import GraphSpec

BYTES = {"fp32": 4, "fp16": 2}
MODULES = ("torch", "triton", "onnxruntime", "onnx", "tensorrt", "tensorrt_rtx_bindings", "tensorrt_rtx", "numpy")


def machine() -> dict[str, Any]:
    """Return date, hardware and versions; `gpu` is None if the driver reports none."""
    packages = importlib.metadata.packages_distributions()
    installed = {name: _version(name, packages.get(name, [])) for name in MODULES}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "gpu": gpu_name(),
        "processor": f"{platform.machine()}, {platform.platform()}",
        "python": platform.python_version(),
        "versions": {"edge-attn": __version__, **{name: version for name, version in installed.items() if version}},
    }


def _version(module: str, packages: list[str]) -> str | None:
    """Return the version of the module's packages, or its own without a package; None if it does not import."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in sorted(set(packages)))
    if versions:
        return versions
    try:
        return f"{getattr(importlib.import_module(module), '__version__', 'unknown')}, without a package"
    except Exception:  # a library that does not load may raise any exception
        return None


def gpu_name() -> str | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, version, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(100)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, 100, device):
        return None
    driver.cuDriverGetVersion(ctypes.byref(version))
    return f"{name.value.decode()}, driver for CUDA {version.value // 1000}.{version.value % 1000 // 10}"


@dataclass(frozen=True)
class Speed:
    """Peak speed of this GPU, measured with torch."""

    bandwidth: float
    """Bytes per second, read and written."""
    products: dict[str, float]
    """Multiply-adds per second, by precision."""
    launch: float
    """Seconds of the launch of an empty kernel and the wait for it."""

    def floor(self, read: int, products: int, precision: str) -> float:
        """Return the minimum seconds of a step: one launch, plus the longer of `read` bytes and `products`."""
        return self.launch + max(read / self.bandwidth, products / self.products[precision])


def step_load(step: GraphSpec, weights: int, batch: int, src: int, precision: str) -> tuple[int, int]:
    """Return the minimum bytes that a step of one token per sentence reads, and its multiplications.

    The weights are read once, and multiplied with the row of each sentence. The memory of each sentence is read once,
    and each number of it enters one product: a key for an energy, a value for the context. Every number counts with the
    width of `precision`, even if an input of the graph is wider.

    Args:
        step: description of the step graph.
        weights: number of weights that a step multiplies.
        batch: sentences.
        src: source tokens of each sentence.
        precision: fp32 or fp16.
    """
    sizes = {"batch": batch, "src": src}
    read, products = weights * BYTES[precision], weights * batch
    for tensor in step.inputs:
        if tensor.name.startswith("memory."):
            size = math.prod(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
            floating = tensor.dtype.startswith("float")
            read += size * (BYTES[precision] if floating else np.dtype(tensor.dtype).itemsize)
            products += size * floating
    return read, products


def measure_speed() -> Speed:
    """Measure the peak speed of the GPU with torch."""
    import torch

    def best(work: Callable[[], object], times: int = 20) -> float:
        seconds = []
        for _ in range(times):
            torch.cuda.synchronize()
            started = time.perf_counter()
            work()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    size = 1 << 28
    source, target = (torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    side, times = 4096, 5
    products = {}
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        square = torch.ones(side, side, device="cuda", dtype=dtype)
        products[precision] = times * side**3 / best(lambda square=square: [square @ square for _ in range(times)])
    copying = best(lambda: [target.copy_(source) for _ in range(times)])
    return Speed(2 * times * size / copying, products, best(target[:1].zero_, 200))
