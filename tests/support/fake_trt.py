"""A small TensorRT on a FakeCuda: what the runtime uses of the module `tensorrt`.

An engine is the graph in ONNX Runtime, which reads its inputs from the bound addresses and writes its outputs there.
Where TensorRT would say no, it logs why and says no; where it would go on in silence, or crash, a `Fault` is raised.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
import types
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from fake_cuda import FakeCuda, Fault, Op


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, message: str) -> None: ...


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, INT64 = "float32", "float16", "int8", "int32", "bool", "uint8", "int64"


FROM_ORT = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(bool)": "bool"}
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
)

KernelSpecialization = enum.Enum("DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"])
KERNELS = b"compiled"
COMPILES = "kernels compiled"
"""Under this name FakeCuda counts what the fake of TensorRT-RTX compiles."""


def build(
    model: bytes,
    profiles: Sequence[dict[str, Any]],
    scratch: int = 4096,
    loops: bool = False,
    seconds: float = 0.0,
) -> bytes:
    """An engine of the fake: the graph and, for each profile, each input's least, best and largest shape.

    One with `loops` cannot be captured; a run takes `seconds` on the FakeCuda's clock.
    """
    return b"FAKE" + json.dumps([list(profiles), scratch, loops, seconds]).encode() + b"\n" + model


def header(plan: bytes) -> list[Any]:
    """The profiles of an engine of the fake, its scratch memory, whether it has loops, and the seconds of a run."""
    found: list[Any] = json.loads(plan[4:].partition(b"\n")[0])
    return found


def model(plan: bytes) -> bytes:
    """Its graph."""
    return plan.partition(b"\n")[2]


class FakeTrt(types.SimpleNamespace):
    """The module `tensorrt`, on a FakeCuda."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__(
            ILogger=ILogger,
            DataType=DataType,
            TensorIOMode=TensorIOMode,
            TensorLocation=TensorLocation,
            ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
            DynamicShapesKernelSpecializationStrategy=KernelSpecialization,
            Runtime=lambda log: Runtime(cuda, log),
        )


class Runtime:
    def __init__(self, cuda: FakeCuda, log: ILogger) -> None:
        self._cuda, self._log = cuda, log

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        if plan[:4] != b"FAKE":
            self._log.log(ILogger.ERROR, "Magic tag does not match")
            return None
        return ICudaEngine(self._cuda, self._log, header(plan), model(plan))


class IRuntimeCache:
    """TensorRT-RTX's kernels, of which the fake has one."""

    compiled = False

    def serialize(self) -> bytes:
        return KERNELS if self.compiled else b""

    def deserialize(self, blob: bytes) -> bool:
        self.compiled = blob == KERNELS
        return self.compiled


class IRuntimeConfig:
    """How TensorRT-RTX makes a context."""

    def __init__(self) -> None:
        self.strategy: ExecutionContextAllocationStrategy | None = None
        self.dynamic_shapes_kernel_specialization_strategy = KernelSpecialization.LAZY
        self.cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy


class ICudaEngine:
    def __init__(self, cuda: FakeCuda, log: ILogger, header: list[Any], model: bytes) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.cuda, self.log = cuda, log
        self.profiles, self.device_memory_size_v2, self.loops, self.seconds = header
        self.inputs = {tensor.name: tensor for tensor in self.session.get_inputs()}
        self.tensors = {**self.inputs, **{tensor.name: tensor for tensor in self.session.get_outputs()}}
        self.num_optimization_profiles = len(self.profiles)
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(FROM_ORT[self.tensors[name].type])

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, how: ExecutionContextAllocationStrategy | IRuntimeConfig) -> IExecutionContext:
        """By a strategy; or by a configuration of TensorRT-RTX, which compiles what its cache does not hold."""
        strategy = how
        if isinstance(how, IRuntimeConfig):
            if how.dynamic_shapes_kernel_specialization_strategy is not KernelSpecialization.EAGER:
                raise Fault("a kernel that stands in for another may be captured")
            strategy = how.strategy
            if how.cache is None or not how.cache.compiled:
                self.cuda.calls[COMPILES] += 1
            if how.cache is not None:
                how.cache.compiled = True
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            raise Fault("the fake has contexts without memory of their own only")
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine, self._cuda = engine, engine.cuda
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = 0, 0
        self._version = 0
        self._ran = -1
        """The version of the last run outside a capture."""

    def set_device_memory(self, memory: int, size: int) -> None:
        self._version += 1
        self._scratch = memory, size

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._version += 1
        if not 0 <= index < len(self.engine.profiles):
            self._no(f"profile {index} of {len(self.engine.profiles)}")
            raise RuntimeError("Error in set optimization profile.")  # as the bindings do
        self._profile = index
        return True

    def set_input_shape(self, name: str, shape: Iterable[int]) -> bool:
        self._version += 1
        if self._profile is None or name not in self.engine.inputs:
            return self._no(f"set_input_shape({name}) without a profile, or of no input")
        least, _, most = self.engine.profiles[self._profile][name]
        shape = tuple(shape)
        if len(shape) != len(least) or not all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True)):
            return self._no(f"{name} of shape {shape} does not satisfy profile {self._profile}: {least} to {most}")
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._version += 1
        if name not in self.engine.tensors:
            return self._no(f"no tensor {name}")
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        return sorted(self.engine.inputs.keys() - self._shapes.keys())

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        axes: dict[Any, int] = {}
        for given, shape in self._shapes.items():
            axes.update(zip(self.engine.inputs[given].shape, shape, strict=True))
        return tuple(axes.get(axis, -1) if isinstance(axis, str) else axis for axis in self.engine.tensors[name].shape)

    def is_stream_capturable(self, stream: int) -> bool:
        return not self.engine.loops or self._no("the graph has a loop")

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.infer_shapes():
            return self._no(f"no shape for {self.infer_shapes()}")
        for name in self.engine.tensors:
            if name not in self._addresses:
                return self._no(f"neither address nor allocator is set for {name}")
        if self._cuda.last:
            raise Fault(f"the error {self._cuda.last} of an earlier call was left behind")
        stream = self._cuda.handles[stream_handle]
        if stream.recorded is not None:
            if self.engine.loops:
                stream.broken = True
                return self._no("operation not permitted when stream is capturing")
            if self._ran != self._version:
                raise Fault("captured before a run with these shapes and addresses")
        else:
            self._ran = self._version
        version = self._version
        self._cuda.start(stream_handle, Op(lambda: self._compute(version), self._touches()))
        return True

    def _no(self, why: str) -> bool:
        self.engine.log.log(ILogger.ERROR, why)
        return False

    def _size(self, name: str) -> int:
        return math.prod(self.get_tensor_shape(name)) * np.dtype(self.engine.get_tensor_dtype(name).value).itemsize

    def _touches(self) -> list[tuple[int, int, bool, str]]:
        memory, size = self._scratch
        if size < self.engine.device_memory_size_v2:
            raise Fault(f"{size} bytes of scratch memory, {self.engine.device_memory_size_v2} are needed")
        found = [(address, self._size(name), False, name) for name, address in self._addresses.items()]
        found.append((memory, size, False, "scratch memory"))
        written = [touched for touched in found if touched[3] not in self.engine.inputs]
        for one in written:
            for other in found:
                if one is not other and one[0] < other[0] + other[1] and other[0] < one[0] + one[1]:
                    raise Fault(f"{one[3]} and {other[3]} lie in the same memory")
        return found

    def _compute(self, version: int) -> None:
        if version != self._version:
            raise Fault("a context was changed after it was captured or enqueued")
        self._cuda.seconds += self.engine.seconds
        ctypes.memset(self._scratch[0], 0x5A, self._scratch[1])
        inputs = {}
        for name in self.engine.inputs:
            raw = np.frombuffer(ctypes.string_at(self._addresses[name], self._size(name)), np.uint8)
            inputs[name] = raw.view(self.engine.get_tensor_dtype(name).value).reshape(self._shapes[name])
        names = [name for name in self.engine.tensors if name not in self.engine.inputs]
        for name, value in zip(names, self.engine.session.run(names, inputs), strict=True):
            if value.shape != self.get_tensor_shape(name):
                raise Fault(f"{name} is {value.shape}, and not {self.get_tensor_shape(name)}")
            ctypes.memmove(self._addresses[name], np.ascontiguousarray(value).ctypes.data, value.nbytes)
