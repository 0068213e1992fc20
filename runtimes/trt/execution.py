"""Engines on the device: one execution context for each combination of shapes and addresses, and its CUDA graph.

A captured graph contains the shapes, addresses and scratch memory of its context, and is undefined after the context
changes. Therefore a context is set up once and never changed. All contexts share one scratch memory, because there is
one stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from edge_attn.errors import BundleError, NotTestedError
from edge_attn.runtimes.trt.api import ICudaEngine, IExecutionContext, Runtime, TensorRT
from edge_attn.runtimes.trt.buffers import DeviceMemory
from edge_attn.runtimes.trt.builder import OUT_OF_MEMORY, Plan
from edge_attn.runtimes.trt.contexts import Contexts
from edge_attn.runtimes.trt.cudart import Cuda, format_mib
from edge_attn.runtimes.trt.engine_cache import RejectedEngine
from edge_attn.spec import GraphSpec

DTYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}
"""TensorRT's name of each dtype."""
ALIGNMENT = 256
MAX_LAUNCHES = 64
"""Maximum number of launches, each with a context: enough for all default buckets at one beam width."""
Copy: TypeAlias = tuple[int, int, int]
"""Destination address, source address, number of bytes."""


@dataclass(frozen=True)
class LaunchKey:
    """A graph, and everything that its context is set up with."""

    graph: str
    profile: int
    shapes: tuple[tuple[int, ...], ...]
    """Padded shapes of the inputs, then of the outputs, in the order of the graph's spec."""
    addresses: tuple[int, ...]
    """Device addresses, in the same order."""
    uploads: tuple[Copy, ...]
    """Copies from pinned memory before the graph runs."""
    downloads: tuple[Copy, ...]
    """Copies to pinned memory after the graph has run."""


@dataclass(eq=False)
class Launch:
    """A graph that is ready to run. From its second run on it is a CUDA graph, if it can be captured."""

    key: LaunchKey
    context: IExecutionContext
    warm: bool = False
    """True after its first run."""
    captured: int = 0
    """Handle of the CUDA graph, 0 if there is none."""


@dataclass(eq=False)
class Launches:
    """The engines of a bundle, and their launches."""

    tensorrt: TensorRT
    cuda: Cuda
    memory: DeviceMemory
    graphs: Mapping[str, GraphSpec]
    contexts: Contexts
    enqueued: dict[str, str] = field(default_factory=dict)
    """Graphs that cannot be captured, and the reason. TensorRT enqueues their kernels on each run."""
    _runtimes: list[Runtime] = field(default_factory=list)
    """TensorRT's runtimes, which must outlive their engines."""
    _engines: dict[str, ICudaEngine] = field(default_factory=dict)
    _launches: dict[LaunchKey, Launch] = field(default_factory=dict)
    _scratch: tuple[int, int] = (0, 0)
    """Address and size of the scratch memory."""

    def load(
        self, plans: Mapping[str, Plan], profile_count: int, rebuild: Callable[[str, RejectedEngine], Plan]
    ) -> None:
        """Deserialize the engines, and allocate the scratch memory of the largest.

        Args:
            plans: plan of each graph.
            profile_count: expected number of profiles of each engine.
            rebuild: builds the engine of a graph again, if TensorRT rejects the cached one although memory is left.

        Raises:
            NotTestedError: an engine does not load here or does not fit the manifest, or there is too little memory.
        """
        trt = self.tensorrt.trt
        self.tensorrt.log.drain_errors()
        try:
            runtime: Runtime = trt.Runtime(self.tensorrt.log)
        except (TypeError, RuntimeError) as error:  # raised by the bindings for a null pointer
            raise self._error("does not start") from error
        self._runtimes.append(runtime)
        for name, plan in plans.items():
            engine: ICudaEngine = runtime.deserialize_cuda_engine(plan.engine)
            if engine is None:
                rejection = self._error(f"does not load the engine of {name}")
                if plan.built or OUT_OF_MEMORY.search(str(rejection)):
                    raise rejection
                engine = runtime.deserialize_cuda_engine(
                    rebuild(name, RejectedEngine(plan.engine, str(rejection))).engine
                )
            if engine is None:
                raise self._error(f"does not load the new engine of {name}")
            self._check(name, engine, profile_count)
            self._engines[name] = engine
        size = max(ALIGNMENT, *(engine.device_memory_size_v2 for engine in self._engines.values()))
        self._scratch = self.memory.buffer("scratch memory", size).address, size

    def captured(self) -> list[str]:
        """Return the graphs that run as CUDA graphs."""
        return sorted({launch.key.graph for launch in self._launches.values() if launch.captured})

    def run(self, key: LaunchKey) -> None:
        """Start a graph on the stream."""
        launch = self._launches.get(key)
        if launch is None:
            self._evict()
            launch = self._launches[key] = Launch(key, self._set_up_context(key))
        if launch.warm and not launch.captured and key.graph not in self.enqueued:
            try:
                launch.captured = self._capture(launch)
            except NotTestedError as error:
                self.enqueued[key.graph] = str(error)
        if launch.captured:
            self.cuda.launch(launch.captured, self.memory.stream)
        elif not self._enqueue(launch):
            raise self._error(f"does not run {key.graph}")
        launch.warm = True

    def close(self) -> None:
        """Release CUDA graphs, contexts and engines, in this order. The stream must be synchronized."""
        with contextlib.ExitStack() as resources:  # calls in reverse order
            for release in (self._runtimes.clear, self._engines.clear, self.contexts.close, self._launches.clear):
                resources.callback(release)
            for launch in self._launches.values():
                resources.callback(self._destroy, launch)
            resources.callback(self.contexts.save_kernels)

    def _evict(self) -> None:
        """Destroy the oldest launches until there is room for one more, after they have finished."""
        while len(self._launches) >= MAX_LAUNCHES:
            self.cuda.synchronize(self.memory.stream)
            self._destroy(self._launches.pop(next(iter(self._launches))))

    def _destroy(self, launch: Launch) -> None:
        if launch.captured:
            self.cuda.destroy_graph(launch.captured)

    def _enqueue(self, launch: Launch) -> bool:
        """Return whether TensorRT started the graph."""
        for device, pinned, size in launch.key.uploads:
            self.cuda.to_device(device, pinned, size, self.memory.stream)
        context: IExecutionContext = launch.context
        if not context.execute_async_v3(self.memory.stream):
            return False
        for pinned, device, size in launch.key.downloads:
            self.cuda.to_host(pinned, device, size, self.memory.stream)
        return True

    def _capture(self, launch: Launch) -> int:
        """Capture the launch as a CUDA graph, and return its handle. On failure the context is unchanged.

        Raises:
            NotTestedError: the graph cannot be captured, for example because it contains a loop or a condition.
        """
        stream = self.memory.stream
        context: IExecutionContext = launch.context
        if self.tensorrt.capability.rtx and not context.is_stream_capturable(stream):
            raise self._error(f"cannot capture {launch.key.graph}")
        self.cuda.begin_capture(stream)
        try:
            started = self._enqueue(launch)
        except BaseException:  # also an interruption: a stream in capture runs nothing
            self.cuda.abandon_capture(stream)
            raise
        if not started:
            self.cuda.abandon_capture(stream)
            raise self._error(f"cannot capture {launch.key.graph}")
        return self.cuda.end_capture(stream)

    def _set_up_context(self, key: LaunchKey) -> IExecutionContext:
        stream = self.memory.stream
        engine: ICudaEngine = self._engines[key.graph]
        context: IExecutionContext | None = self.contexts.create(key.graph, engine)
        if context is None:
            raise self._error(f"creates no execution context for {key.graph}")
        context.set_device_memory(*self._scratch)
        try:
            accepted = context.set_optimization_profile_async(key.profile, stream)
        except RuntimeError as error:  # raised by the bindings instead of False
            raise self._error(f"rejects profile {key.profile} of {key.graph}") from error
        if not accepted:
            raise self._error(f"rejects profile {key.profile} of {key.graph}")
        spec = self.graphs[key.graph]
        for i, tensor in enumerate((*spec.inputs, *spec.outputs)):
            if i < len(spec.inputs) and not context.set_input_shape(tensor.name, key.shapes[i]):
                raise self._error(f"rejects {tensor.name} of shape {key.shapes[i]}")
            if not context.set_tensor_address(tensor.name, key.addresses[i]):
                raise self._error(f"rejects the address of {tensor.name}")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise self._error(f"cannot infer the shapes of {key.graph}") from error
        if missing:
            raise self._error(f"needs {', '.join(missing)} to infer the shapes of {key.graph}")
        for tensor, expected in zip(spec.outputs, key.shapes[len(spec.inputs) :], strict=True):
            shape = tuple(context.get_tensor_shape(tensor.name))
            if shape != expected:
                raise BundleError(
                    f"the engine of {key.graph} returns {tensor.name} of shape {shape}, expected {expected}"
                )
        return context

    def _check(self, name: str, engine: ICudaEngine, profile_count: int) -> None:
        """Check that inputs, outputs and profiles are those of the bundle, and that all tensors are on the device."""
        trt, spec = self.tensorrt.trt, self.graphs[name]
        actual = {}
        for i in range(engine.num_io_tensors):
            tensor = engine.get_tensor_name(i)
            is_input = engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT
            on_device = engine.get_tensor_location(tensor) == trt.TensorLocation.DEVICE
            actual[tensor] = is_input, engine.get_tensor_dtype(tensor).name, on_device
        expected = {tensor.name: (True, DTYPES[tensor.dtype], True) for tensor in spec.inputs}
        expected |= {tensor.name: (False, DTYPES[tensor.dtype], True) for tensor in spec.outputs}
        wrong = sorted(k for k in {*actual, *expected} if actual.get(k) != expected.get(k))
        if wrong or engine.num_optimization_profiles != profile_count:
            reason = f"its {wrong[0]} differs" if wrong else f"it has {engine.num_optimization_profiles} profiles"
            raise NotTestedError(
                f"the engine of {name} is not this bundle's: {reason}; run: edge-attn cache clear, to build it again"
            )

    def _error(self, problem: str) -> NotTestedError:
        """Return an error with TensorRT's log and the free memory, because too little is the most common reason."""
        logged = "; ".join(" ".join(error.split()) for error in self.tensorrt.log.drain_errors()) or "it logs no reason"
        free, total = map(format_mib, self.cuda.memory())
        todo = "; close other programs that use it, or choose smaller buckets" if OUT_OF_MEMORY.search(logged) else ""
        memory = f"{free} of {total} of device memory are free{todo}"
        return NotTestedError(f"{self.tensorrt.name} {problem}: {logged} ({memory})")
