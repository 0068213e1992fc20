"""Engines on the device: one execution context for each set of shapes and addresses, and its CUDA graph.

A captured graph holds its context's shapes, addresses and scratch memory, and is undefined once the context is changed,
so a context is set up once and never touched again. All of them work in one scratch memory: there is one stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
KEPT = 64
"""Launches that are kept, which is every one of the default buckets at one width of beam; each holds a context."""


@dataclass(frozen=True)
class LaunchKey:
    """A graph with everything that a context is set up with."""

    graph: str
    profile: int
    shapes: tuple[tuple[int, ...], ...]
    """Of the inputs, then of the outputs, in the order of the graph's spec."""
    addresses: tuple[int, ...]
    """On the device, in the same order."""
    uploads: tuple[tuple[int, int, int], ...]
    """Copies that come first: to which address, from which pinned one, how many bytes."""
    downloads: tuple[tuple[int, int, int], ...]
    """Copies that come last: to which pinned address, from which one, how many bytes."""


@dataclass(eq=False)
class Launch:
    """One bound graph: it runs once as it is, and from the second time on as a CUDA graph, where it can be captured."""

    bound: LaunchKey
    context: IExecutionContext
    warm: bool = False
    captured: int = 0
    """The handle of its CUDA graph."""


@dataclass(eq=False)
class Launches:
    """The engines of a bundle, and every launch that was made of them."""

    tensorrt: TensorRT
    cuda: Cuda
    memory: DeviceMemory
    graphs: Mapping[str, GraphSpec]
    contexts: Contexts
    enqueued: dict[str, str] = field(default_factory=dict)
    """The graphs that cannot be captured, and why; they are enqueued call by call."""
    _runtimes: list[Runtime] = field(default_factory=list)
    """TensorRT's own, which must outlive its engines."""
    _engines: dict[str, ICudaEngine] = field(default_factory=dict)
    _launches: dict[LaunchKey, Launch] = field(default_factory=dict)
    _scratch: tuple[int, int] = (0, 0)
    """Address and size."""

    def load(self, plans: Mapping[str, Plan], profiles: int, again: Callable[[str, RejectedEngine], Plan]) -> None:
        """Takes the engines, and allocates what the largest needs to compute; `profiles` is how many each has.

        One of the cache that TensorRT refuses, and not for lack of memory, is built `again`.

        Raises:
            NotTestedError: one does not load here, or is not the manifest's; or there is too little memory.
        """
        trt = self.tensorrt.trt
        self.tensorrt.log.drain_errors()
        try:
            runtime: Runtime = trt.Runtime(self.tensorrt.log)
        except (TypeError, RuntimeError) as error:  # what its bindings make of a null pointer
            raise self._refused("does not start") from error
        self._runtimes.append(runtime)
        for name, plan in plans.items():
            engine: ICudaEngine = runtime.deserialize_cuda_engine(plan.engine)
            if engine is None:
                refusal = self._refused(f"does not load the engine of {name}")
                if plan.built or OUT_OF_MEMORY.search(str(refusal)):
                    raise refusal
                engine = runtime.deserialize_cuda_engine(again(name, RejectedEngine(plan.engine, str(refusal))).engine)
            if engine is None:
                raise self._refused(f"does not load the new engine of {name}")
            self._check(name, engine, profiles)
            self._engines[name] = engine
        size = max(ALIGNMENT, *(engine.device_memory_size_v2 for engine in self._engines.values()))
        self._scratch = self.memory.buffer("scratch memory", size).address, size

    def captured(self) -> list[str]:
        """The graphs that run as CUDA graphs."""
        return sorted({launch.bound.graph for launch in self._launches.values() if launch.captured})

    def run(self, bound: LaunchKey) -> None:
        """Starts it on the stream."""
        launch = self._launches.get(bound)
        if launch is None:
            self._make_room()
            launch = self._launches[bound] = Launch(bound, self._set_up(bound))
        if launch.warm and not launch.captured and bound.graph not in self.enqueued:
            try:
                launch.captured = self._capture(launch)
            except NotTestedError as error:
                self.enqueued[bound.graph] = str(error)
        if launch.captured:
            self.cuda.launch(launch.captured, self.memory.stream)
        elif not self._enqueue(launch):
            raise self._refused(f"does not run {bound.graph}")
        launch.warm = True

    def close(self) -> None:
        """Lets go of graphs, contexts and engines; the stream must be settled."""
        with contextlib.ExitStack() as held:
            for let_go in (self._runtimes.clear, self._engines.clear, self.contexts.close, self._launches.clear):
                held.callback(let_go)
            for launch in self._launches.values():
                held.callback(self._drop, launch)
            held.callback(self.contexts.keep)

    def _make_room(self) -> None:
        """Lets go of the launches that were made first, once nothing of them runs any more."""
        while len(self._launches) >= KEPT:
            self.cuda.synchronize(self.memory.stream)
            self._drop(self._launches.pop(next(iter(self._launches))))

    def _drop(self, launch: Launch) -> None:
        if launch.captured:
            self.cuda.destroy_graph(launch.captured)

    def _enqueue(self, launch: Launch) -> bool:
        """False where TensorRT does not start it."""
        for device, pinned, size in launch.bound.uploads:
            self.cuda.to_device(device, pinned, size, self.memory.stream)
        context: IExecutionContext = launch.context
        if not context.execute_async_v3(self.memory.stream):
            return False
        for pinned, device, size in launch.bound.downloads:
            self.cuda.to_host(pinned, device, size, self.memory.stream)
        return True

    def _capture(self, launch: Launch) -> int:
        """Its CUDA graph.

        Raises:
            NotTestedError: it cannot be captured, as loops and conditions cannot; it is none the worse for the trial.
        """
        stream = self.memory.stream
        context: IExecutionContext = launch.context
        if self.tensorrt.capability.rtx and not context.is_stream_capturable(stream):
            raise self._refused(f"cannot capture {launch.bound.graph}")
        self.cuda.begin_capture(stream)
        try:
            started = self._enqueue(launch)
        except BaseException:  # an interruption too: a stream that records runs nothing
            self.cuda.abandon_capture(stream)
            raise
        if not started:
            self.cuda.abandon_capture(stream)
            raise self._refused(f"cannot capture {launch.bound.graph}")
        return self.cuda.end_capture(stream)

    def _set_up(self, bound: LaunchKey) -> IExecutionContext:
        stream = self.memory.stream
        engine: ICudaEngine = self._engines[bound.graph]
        context: IExecutionContext | None = self.contexts.make(bound.graph, engine)
        if context is None:
            raise self._refused(f"makes no execution context for {bound.graph}")
        context.set_device_memory(*self._scratch)
        try:
            taken = context.set_optimization_profile_async(bound.profile, stream)
        except RuntimeError as error:  # the bindings' word for False
            raise self._refused(f"does not take profile {bound.profile} of {bound.graph}") from error
        if not taken:
            raise self._refused(f"does not take profile {bound.profile} of {bound.graph}")
        spec = self.graphs[bound.graph]
        for i, tensor in enumerate((*spec.inputs, *spec.outputs)):
            if i < len(spec.inputs) and not context.set_input_shape(tensor.name, bound.shapes[i]):
                raise self._refused(f"does not take {tensor.name} of shape {bound.shapes[i]}")
            if not context.set_tensor_address(tensor.name, bound.addresses[i]):
                raise self._refused(f"does not take an address for {tensor.name}")
        try:
            lacking = context.infer_shapes()
        except RuntimeError as error:
            raise self._refused(f"cannot infer the shapes of {bound.graph}") from error
        if lacking:
            raise self._refused(f"needs {', '.join(lacking)} to know the shapes of {bound.graph}")
        for tensor, shape in zip(spec.outputs, bound.shapes[len(spec.inputs) :], strict=True):
            found = tuple(context.get_tensor_shape(tensor.name))
            if found != shape:
                raise BundleError(f"the engine of {bound.graph} gives {tensor.name} of shape {found}, expected {shape}")
        return context

    def _check(self, name: str, engine: ICudaEngine, profiles: int) -> None:
        """The engine's inputs and outputs are the manifest's, all on the device, and its profiles are ours."""
        trt, spec = self.tensorrt.trt, self.graphs[name]
        found = {}
        for i in range(engine.num_io_tensors):
            tensor = engine.get_tensor_name(i)
            given = engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT
            on_device = engine.get_tensor_location(tensor) == trt.TensorLocation.DEVICE
            found[tensor] = given, engine.get_tensor_dtype(tensor).name, on_device
        expected = {tensor.name: (True, DTYPES[tensor.dtype], True) for tensor in spec.inputs}
        expected |= {tensor.name: (False, DTYPES[tensor.dtype], True) for tensor in spec.outputs}
        wrong = sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))
        if wrong or engine.num_optimization_profiles != profiles:
            what = f"its {wrong[0]} is another" if wrong else f"it has {engine.num_optimization_profiles} profiles"
            raise NotTestedError(
                f"the engine of {name} is not this bundle's: {what}; run: edge-attn cache clear, and it is built again"
            )

    def _refused(self, what: str) -> NotTestedError:
        """What TensorRT logged, and the memory that is left, since too little is the commonest reason."""
        said = "; ".join(" ".join(error.split()) for error in self.tensorrt.log.drain_errors()) or "it says nothing"
        free, total = map(format_mib, self.cuda.memory())
        todo = "; close other programs that use it, or choose smaller buckets" if OUT_OF_MEMORY.search(said) else ""
        return NotTestedError(
            f"{self.tensorrt.name} {what}: {said} ({free} of {total} of device memory are free{todo})"
        )
