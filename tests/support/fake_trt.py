"""A fake of the module `tensorrt` on a FakeCuda, as far as the runtime uses it.

An engine is the graph in ONNX Runtime, which reads its inputs from the bound addresses and writes its outputs there.
Errors of TensorRT are logged and returned. A `Fault` is raised for mistakes that TensorRT would not report, or that
would crash.
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
"""Key of the compilations of the fake TensorRT-RTX in FakeCuda.calls."""


def build(
    model: bytes,
    profiles: Sequence[dict[str, Any]],
    scratch: int = 4096,
    loops: bool = False,
    seconds: float = 0.0,
) -> bytes:
    """Return a serialized engine: the graph and, for each profile, the min, opt and max shape of each input.

    An engine with `loops` cannot be captured. A run takes `seconds` on the clock of the FakeCuda.
    """
    return b"FAKE" + json.dumps([list(profiles), scratch, loops, seconds]).encode() + b"\n" + model


def header(plan: bytes) -> list[Any]:
    """Return profiles, size of the scratch memory, loops and seconds of a serialized engine."""
    fields: list[Any] = json.loads(plan[4:].partition(b"\n")[0])
    return fields


def model(plan: bytes) -> bytes:
    """Return the graph of a serialized engine."""
    return plan.partition(b"\n")[2]


class FakeTrt(types.SimpleNamespace):
    """The fake module."""

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
    """Compiled kernels of TensorRT-RTX. The fake has one."""

    compiled = False

    def serialize(self) -> bytes:
        return KERNELS if self.compiled else b""

    def deserialize(self, blob: bytes) -> bool:
        self.compiled = blob == KERNELS
        return self.compiled


class IRuntimeConfig:
    """Context options of TensorRT-RTX."""

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
        """Create a context from a strategy, or from a configuration of TensorRT-RTX, which compiles missing kernels."""
        strategy = how
        if isinstance(how, IRuntimeConfig):
            if how.dynamic_shapes_kernel_specialization_strategy is not KernelSpecialization.EAGER:
                raise Fault("a fallback kernel may be captured")
            strategy = how.strategy
            if how.cache is None or not how.cache.compiled:
                self.cuda.calls[COMPILES] += 1
            if how.cache is not None:
                how.cache.compiled = True
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            raise Fault("the fake supports only contexts without memory of their own")
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
        """Version at the last run outside a capture."""

    def set_device_memory(self, memory: int, size: int) -> None:
        self._version += 1
        self._scratch = memory, size

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._version += 1
        if not 0 <= index < len(self.engine.profiles):
            self._fail(f"profile {index} of {len(self.engine.profiles)}")
            raise RuntimeError("Error in set optimization profile.")  # as the bindings do
        self._profile = index
        return True

    def set_input_shape(self, name: str, shape: Iterable[int]) -> bool:
        self._version += 1
        if self._profile is None or name not in self.engine.inputs:
            return self._fail(f"set_input_shape({name}) without a profile, or of no input")
        min_shape, _, max_shape = self.engine.profiles[self._profile][name]
        shape = tuple(shape)
        if len(shape) != len(min_shape) or not all(
            low <= n <= high for low, n, high in zip(min_shape, shape, max_shape, strict=True)
        ):
            return self._fail(
                f"{name} of shape {shape} does not satisfy profile {self._profile}: {min_shape} to {max_shape}"
            )
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._version += 1
        if name not in self.engine.tensors:
            return self._fail(f"no tensor {name}")
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        return sorted(self.engine.inputs.keys() - self._shapes.keys())

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        axes: dict[Any, int] = {}
        for input_name, shape in self._shapes.items():
            axes.update(zip(self.engine.inputs[input_name].shape, shape, strict=True))
        return tuple(axes.get(axis, -1) if isinstance(axis, str) else axis for axis in self.engine.tensors[name].shape)

    def is_stream_capturable(self, stream: int) -> bool:
        return not self.engine.loops or self._fail("the graph has a loop")

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.infer_shapes():
            return self._fail(f"no shape for {self.infer_shapes()}")
        for name in self.engine.tensors:
            if name not in self._addresses:
                return self._fail(f"neither address nor allocator is set for {name}")
        if self._cuda.last:
            raise Fault(f"the error {self._cuda.last} of an earlier call was not cleared")
        stream = self._cuda.handles[stream_handle]
        if stream.recorded is not None:
            if self.engine.loops:
                stream.broken = True
                return self._fail("operation not permitted when stream is capturing")
            if self._ran != self._version:
                raise Fault("captured before a run with these shapes and addresses")
        else:
            self._ran = self._version
        version = self._version
        self._cuda.start(stream_handle, Op(lambda: self._compute(version), self._accesses()))
        return True

    def _fail(self, why: str) -> bool:
        self.engine.log.log(ILogger.ERROR, why)
        return False

    def _size(self, name: str) -> int:
        return math.prod(self.get_tensor_shape(name)) * np.dtype(self.engine.get_tensor_dtype(name).value).itemsize

    def _accesses(self) -> list[tuple[int, int, bool, str]]:
        memory, size = self._scratch
        if size < self.engine.device_memory_size_v2:
            raise Fault(f"{size} bytes of scratch memory, {self.engine.device_memory_size_v2} are needed")
        accesses = [(address, self._size(name), False, name) for name, address in self._addresses.items()]
        accesses.append((memory, size, False, "scratch memory"))
        written = [access for access in accesses if access[3] not in self.engine.inputs]
        for output in written:
            for other in accesses:
                if output is not other and output[0] < other[0] + other[1] and other[0] < output[0] + output[1]:
                    raise Fault(f"{output[3]} and {other[3]} use the same memory")
        return accesses

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
                raise Fault(f"{name} is {value.shape}, expected {self.get_tensor_shape(name)}")
            ctypes.memmove(self._addresses[name], np.ascontiguousarray(value).ctypes.data, value.nbytes)
