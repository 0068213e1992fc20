"""Execution contexts of engines, without scratch memory of their own.

TensorRT-RTX compiles an engine's kernels on the device, when a context meets a shape. Here it does so before that shape
runs, so that a captured graph never holds a kernel that only stands in until the right one is compiled; and what was
compiled is kept in a file beside the engines. TensorRT-RTX itself refuses a file of another version or GPU.
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
    """The file of the kernels that were compiled for this GPU."""
    return folder / f"{re.sub('[^A-Za-z0-9.]+', '-', f'{tensorrt.name} {gpu.name}')}.kernels"


@dataclass(eq=False)
class Contexts:
    """Makes contexts."""

    tensorrt: TensorRT
    kernels: Path
    """Where TensorRT-RTX's compiled kernels are kept."""
    _configs: dict[str, IRuntimeConfig] = field(default_factory=dict)
    """By the graph; they live as long as their contexts."""
    _cache: IRuntimeCache | None = None
    """Of every context, once there is one."""
    _kept: bytes = b""
    """What the file held."""

    def make(self, graph: str, engine: ICudaEngine) -> IExecutionContext | None:
        """None where TensorRT makes none, which its log explains."""
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
                    self._kept = self.kernels.read_bytes()
                    self._cache.deserialize(self._kept)
            config.set_runtime_cache(self._cache)
            self._configs[graph] = config
        return engine.create_execution_context(self._configs[graph])

    def keep(self) -> None:
        """Writes what was compiled to its file; that it cannot is no fault: it is compiled again."""
        if self.tensorrt.capability.rtx and self._cache is not None:
            compiled = bytes(self._cache.serialize())
            if compiled != self._kept:
                with contextlib.suppress(OSError):
                    write_bytes(self.kernels, compiled)

    def close(self) -> None:
        """Lets go of configurations and kernels; no context may be left."""
        self._configs.clear()
        self._cache = None
