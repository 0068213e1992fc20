"""Execution contexts of engines, without scratch memory of their own.

TensorRT-RTX compiles the kernels of an engine on the device, when a context gets a new shape. Its contexts are set to
compile before that shape runs, so that a captured graph never contains a temporary fallback kernel. Compiled kernels
are stored in a file beside the engines. TensorRT-RTX ignores a file of another version or GPU.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from edge_attn.runtimes.trt.api import ICudaEngine, IExecutionContext, IRuntimeCache, IRuntimeConfig, TensorRT
from edge_attn.runtimes.trt.cudart import Gpu
from edge_attn.storage.atomic import write_bytes


def kernels_file(folder: Path, tensorrt: TensorRT, gpu: Gpu) -> Path:
    """Return the path of the kernels that were compiled for this GPU."""
    return folder / f"{re.sub('[^A-Za-z0-9.]+', '-', f'{tensorrt.name} {gpu.name}')}.kernels"


@dataclass(eq=False)
class Contexts:
    """Factory of execution contexts."""

    tensorrt: TensorRT
    kernels: Path
    """File of TensorRT-RTX's compiled kernels."""
    _configs: dict[str, IRuntimeConfig] = field(default_factory=dict)
    """Runtime configuration of each graph, which must outlive its contexts."""
    _cache: IRuntimeCache | None = None
    """Kernel cache of all contexts."""
    _stored: bytes = b""
    """Content of the kernel file."""

    def create(self, graph: str, engine: ICudaEngine) -> IExecutionContext | None:
        """Create a context, or return None if TensorRT fails, which its log explains."""
        strategy = self.tensorrt.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.tensorrt.capability.rtx:
            return engine.create_execution_context(strategy)
        if graph not in self._configs:
            config: IRuntimeConfig = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            eager = self.tensorrt.trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                with contextlib.suppress(OSError):
                    self._stored = self.kernels.read_bytes()
                    self._cache.deserialize(self._stored)
            config.set_runtime_cache(self._cache)
            self._configs[graph] = config
        return engine.create_execution_context(self._configs[graph])

    def save_kernels(self) -> None:
        """Write newly compiled kernels to the file. If that fails, they are compiled again next time."""
        if self.tensorrt.capability.rtx and self._cache is not None:
            compiled = bytes(self._cache.serialize())
            if compiled != self._stored:
                with contextlib.suppress(OSError):
                    write_bytes(self.kernels, compiled)

    def close(self) -> None:
        """Release configurations and kernels, after all contexts."""
        self._configs.clear()
        self._cache = None
