"""The machine under a GPU benchmark: its names and versions, and what its GPU can do at most."""

from __future__ import annotations

import ctypes
import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BYTES = {"fp32": 4, "fp16": 2}
PACKAGES = ("edge-attn", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings", "numpy")


def machine() -> dict[str, Any]:
    """Where and with what this was measured; `gpu` is None where the driver shows none."""
    installed = {name: _version(name) for name in PACKAGES}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "gpu": gpu_name(),
        "processor": f"{platform.machine()}, {platform.platform()}",
        "python": platform.python_version(),
        "versions": {name: version for name, version in installed.items() if version},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
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
    """What this GPU can do at most, as measured with torch."""

    bandwidth: float
    """Bytes a second, read and written."""
    products: dict[str, float]
    """Multiplications with addition a second, by precision."""
    launch: float
    """Seconds until one launch that does nothing is waited for."""

    def floor(self, weights: int, batch: int, precision: str) -> float:
        """Seconds that a step takes at least: `weights` read once, and multiplied with each row of the batch."""
        return max(weights * BYTES[precision] / self.bandwidth, weights * batch / self.products[precision])


def measure_speed() -> Speed:
    import torch

    def best(work: Callable[[], object], times: int = 20) -> float:
        found = []
        for _ in range(times):
            torch.cuda.synchronize()
            started = time.perf_counter()
            work()
            torch.cuda.synchronize()
            found.append(time.perf_counter() - started)
        return min(found)

    size = 1 << 28
    source, target = (torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    side, times = 4096, 5
    products = {}
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        square = torch.ones(side, side, device="cuda", dtype=dtype)
        products[precision] = times * side**3 / best(lambda square=square: [square @ square for _ in range(times)])
    copying = best(lambda: [target.copy_(source) for _ in range(times)])
    return Speed(2 * times * size / copying, products, best(lambda: target[:1].zero_(), 200))
