"""The runtime `trt`: TensorRT engines of a bundle's graphs on an NVIDIA GPU or a Jetson.

Engines come from the cache, or are built first (runtimes/trt/builder.py). Device buffers are allocated when the runtime
is opened, with the size of the largest bucket, and are bound by address. Encoder outputs and states stay on the device:
a step reads its state from one buffer and writes the next one to another, without a copy. Only the candidates are
copied back after each step, and values for which `numpy` is called.

Requests are padded in batch and src to the sizes of their bucket, so that few different launches occur, and outputs are
trimmed. Padding rows repeat the first row, padding positions are PAD, which the mask excludes. Beams are not padded,
because a search has only two widths. No engine has run on a GPU in this project's tests: they run this code on a fake.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shlex
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.config.validation import from_mapping
from edge_attn.errors import InputError, NotTestedError, UsageError
from edge_attn.runtimes.trt.api import TensorRT, load_tensorrt
from edge_attn.runtimes.trt.autotune import Engines
from edge_attn.runtimes.trt.buffers import Buffer, DeviceMemory, OnDevice, Pinned
from edge_attn.runtimes.trt.build_config import MIB, BuildConfig
from edge_attn.runtimes.trt.builder import Log
from edge_attn.runtimes.trt.contexts import Contexts, kernels_file
from edge_attn.runtimes.trt.cudart import format_mib, open_cuda
from edge_attn.runtimes.trt.engine_cache import EngineCache, cache_folder
from edge_attn.runtimes.trt.execution import Copy, Launches, LaunchKey
from edge_attn.runtimes.trt.profiles import Buckets, Shape, shape_of
from edge_attn.spec import GraphSpec, TensorSpec, Value
from edge_attn.text.tokenizers import PAD
from edge_attn.versions import parse_version

NEXT = "next_"
"""Prefix of a state's name among the outputs of a step."""
RETURNED = ("candidates", "candidate_ids")
"""Outputs that a search reads after each step. The launch itself copies them to the host."""


@dataclass(frozen=True)
class PaddedShapes:
    """Shapes of one request in its bucket."""

    profile: int
    padded: tuple[Shape, ...]
    """Padded shapes of the inputs, then of the outputs."""
    outputs: tuple[Shape, ...]
    """Shapes of the outputs without padding."""


class Trt:
    """All graphs of a bundle in TensorRT, for one thread at a time.

    Raises:
        NotTestedError: TensorRT, CUDA, a device or the target's graphs are missing, or there is too little memory.
        InputError: an engine cannot be built or stored.
    """

    name = "trt"
    rtx = False

    def __init__(self, bundle: Bundle, options: RuntimeOptions = DEFAULT) -> None:
        engines = open_engines(bundle, options, rtx=self.rtx)
        tensorrt, cuda, gpu = engines.tensorrt, engines.cuda, engines.gpu
        target, config, cache = engines.target, engines.config, engines.cache
        plans = {graph: engines.plan(graph) for graph in target.graphs}
        self.precision = target.precision
        self.graphs: Mapping[str, GraphSpec] = target.graphs
        self._engine_name, self._chosen = f"{tensorrt.name} on {gpu.name}", engines.chosen
        buckets = config.buckets.up_to(bundle.manifest.max_source)
        self.max_batch = buckets.batch[-1]
        """Maximum batch size."""
        self.max_beam = buckets.beam
        """Maximum beam."""
        self._padded_shapes = functools.lru_cache(maxsize=4096)(functools.partial(_padded_shapes, self.graphs, buckets))
        with contextlib.ExitStack() as resources:
            self._memory = DeviceMemory(cuda, resources)
            self._buffers, self._staging = _allocate(self._memory, self.graphs, buckets)
            contexts = Contexts(tensorrt, kernels_file(cache.folder, tensorrt, gpu))
            self._launches = Launches(tensorrt, cuda, self._memory, self.graphs, contexts)
            resources.callback(self._launches.close)
            self._launches.load(plans, len(buckets.all()), engines.plan)
            resources.callback(self._memory.synchronize)
            self._close = weakref.finalize(self, resources.pop_all().close)

    @property
    def device_memory(self) -> int:
        """Bytes of this runtime's buffers on the device. TensorRT allocates the engines' weights in addition."""
        return self._memory.device_bytes

    @property
    def provider(self) -> str:
        """TensorRT's version, the device, the buffers, and how the graphs that have run are started."""
        captured, enqueued = self._launches.captured(), sorted(self._launches.enqueued)
        parts = [self._engine_name, *self._chosen.values(), f"buffers of {format_mib(self.device_memory)}"]
        parts += [f"as CUDA graphs: {', '.join(captured)}"] if captured else []
        parts += [f"not capturable: {', '.join(enqueued)}"] if enqueued else []
        return "; ".join(parts)

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Start a graph. Its outputs stay on the device.

        Raises:
            InputError: no bucket covers the request, or an input does not fit the graph or the other inputs.
            EdgeAttnError: an input has been overwritten.
        """
        self._check_open()
        spec = self.graphs[graph]
        values = [inputs[tensor.name] for tensor in spec.inputs]
        for tensor, value in zip(spec.inputs, values, strict=True):
            if value.dtype != tensor.dtype:
                raise InputError(f"{graph}: expected {tensor}, got {value.dtype}")
        device_shapes = tuple(
            self._memory.device_shape(value) if isinstance(value, OnDevice) else None for value in values
        )
        shapes = self._padded_shapes(graph, tuple(value.shape for value in values), device_shapes)
        self._memory.synchronize()
        uploads: list[Copy] = []
        staged = zip(spec.inputs, values, shapes.padded, strict=False)
        buffers = [self._stage_input(tensor, value, padded, uploads) for tensor, value, padded in staged]
        outputs = {}
        downloads: list[Copy] = []
        for tensor, shape, padded in zip(spec.outputs, shapes.outputs, shapes.padded[len(values) :], strict=True):
            buffer = self._output_buffer(tensor, buffers)
            buffer.generation += 1
            buffers.append(buffer)
            returned = self._staging.get(tensor.name)
            outputs[tensor.name] = OnDevice(buffer, buffer.generation, tensor.dtype, shape, padded, returned)
            if returned is not None:
                size = math.prod(padded) * np.dtype(tensor.dtype).itemsize
                downloads.append((returned.address, buffer.address, size))
        addresses = tuple(buffer.address for buffer in buffers)
        self._memory.mark_busy()
        self._launches.run(LaunchKey(graph, shapes.profile, shapes.padded, addresses, tuple(uploads), tuple(downloads)))
        return outputs

    def numpy(self, value: Value) -> np.ndarray:
        """Return a copy of a value, without padding.

        Raises:
            EdgeAttnError: the value has been overwritten.
        """
        if isinstance(value, np.ndarray):
            return value
        self._check_open()
        return self._memory.read(value)

    def select_rows(self, value: Value, index: np.ndarray) -> Value | None:
        """Return None, because launches are captured for one batch size."""
        return None

    def close(self) -> None:
        """Free all device memory. Further calls do nothing. Garbage collection of the runtime does the same."""
        self._close()

    def _check_open(self) -> None:
        if not self._close.alive:
            raise UsageError(f"the runtime {self.name} was closed; open the bundle again")

    def _stage_input(self, tensor: TensorSpec, value: Value, shape: Shape, uploads: list[Copy]) -> Buffer:
        """Return the buffer of an input.

        An input that changes with each run is padded into pinned memory, and its copy is added to `uploads`, so that
        the launch copies it. An array of memory or state is copied to the device now.
        """
        if isinstance(value, OnDevice):
            return value.buffer
        if tensor.name not in self._staging:
            padded = np.empty(shape, value.dtype)
            _pad(padded, value, tensor)
            buffer = self._buffers.get(NEXT + tensor.name, self._buffers[tensor.name])[0]
            self._memory.write(buffer, padded)
            return buffer
        (buffer,), pinned = self._buffers[tensor.name], self._staging[tensor.name]
        size = math.prod(shape) * value.itemsize
        _pad(pinned.bytes[:size].view(value.dtype).reshape(shape), value, tensor)
        uploads.append((buffer.address, pinned.address, size))
        return buffer

    def _output_buffer(self, output: TensorSpec, in_use: Sequence[Buffer]) -> Buffer:
        """Return a buffer of the output that is not in use by an input of the same run.

        An in-place cache update would use the buffer of its input (Capability.inplace_cache).
        """
        return next(buffer for buffer in self._buffers[output.name] if buffer not in in_use)


class TrtRtx(Trt):
    """All graphs of a bundle in TensorRT-RTX, which compiles kernels for the GPU when a context is created."""

    name = "trt-rtx"
    rtx = True


def open_engines(
    bundle: Bundle, options: RuntimeOptions = DEFAULT, log: Log | None = None, rtx: bool = False
) -> Engines:
    """Return the engines of a bundle's target on this device. Each is built, or read from the cache, on use.

    Args:
        bundle: the bundle.
        options: precision and cache folder.
        log: receives one line for each build; standard error by default.
        rtx: whether to use TensorRT-RTX.

    Raises:
        NotTestedError: TensorRT, CUDA, a device or the target's graphs are missing, or this TensorRT is too old.
    """
    tensorrt, cuda = load_tensorrt(rtx), open_cuda()
    gpu = cuda.gpu()
    target = bundle.target("trt", options.precision)
    _check_min_version(tensorrt, bundle, target)
    config = build_config(target)
    cache = EngineCache(cache_folder(options.cache_dir), config.cache_mb * MIB)
    return Engines(tensorrt, cuda, gpu, bundle, target, config, cache, log or _log)


def build_config(target: Target) -> BuildConfig:
    """Return the build configuration of a target, which `optimize` stored with its graphs."""
    return from_mapping(BuildConfig, target.settings.get("build", {}), f"targets: {target.name}: build")


def _check_min_version(tensorrt: TensorRT, bundle: Bundle, target: Target) -> None:
    """Raise NotTestedError if the target's graphs need a newer version of TensorRT."""
    min_version = str(target.settings.get("min_version", ""))
    level = tensorrt.capability.level
    if level < parse_version(min_version)[: len(level)]:
        current = ".".join(map(str, level[:2]))
        path = shlex.quote(str(bundle.path))
        raise NotTestedError(
            f"{bundle.path} contains {target.name} for TensorRT {min_version} or newer, got {tensorrt.name}; run: "
            f"edge-attn optimize {path} --target trt --precision {target.precision} --min-version {current} --force"
        )


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _padded_shapes(
    graphs: Mapping[str, GraphSpec],
    buckets: Buckets,
    graph: str,
    shapes: tuple[Shape, ...],
    device_shapes: tuple[Shape | None, ...],
) -> PaddedShapes:
    """Return the shapes of a request in the smallest bucket that covers it.

    Args:
        graphs: graphs of the bundle.
        buckets: buckets of the engines.
        graph: the graph that runs.
        shapes: shapes of its inputs without padding.
        device_shapes: padded shapes of the inputs that are on the device already, None for the other inputs.
    """
    spec = graphs[graph]
    axes: dict[str, int] = {}
    device_axes: dict[str, int] = {}
    for tensor, shape, on_device in zip(spec.inputs, shapes, device_shapes, strict=True):
        _add_axes(graph, tensor, shape, axes)
        if on_device is not None:
            _add_axes(graph, tensor, on_device, device_axes)
    buckets.pick(*_request(axes))
    bucket = buckets.pick(*_request({**axes, **device_axes}))
    padded_axes = {**axes, **device_axes, "batch": bucket.batch, "src": bucket.src}
    padded = tuple(shape_of(tensor, padded_axes) for tensor in (*spec.inputs, *spec.outputs))
    return PaddedShapes(bucket.index, padded, tuple(shape_of(tensor, axes) for tensor in spec.outputs))


def _request(axes: Mapping[str, int]) -> tuple[int, int, int]:
    """Return batch, src and beam, the parameters of Buckets.pick."""
    return axes["batch"], axes.get("src", 1), max(axes.get("beam", 1), axes.get("previous_beam", 1))


def _add_axes(graph: str, tensor: TensorSpec, shape: Shape, axes: dict[str, int]) -> None:
    """Add the sizes of the tensor's axes to `axes`. Raise InputError if they contradict it, or the tensor's spec."""
    pairs = zip(tensor.shape, shape, strict=False)
    wrong = [n for axis, n in pairs if n != (axes.setdefault(axis, n) if isinstance(axis, str) else axis) or n < 1]
    if wrong or len(shape) != len(tensor.shape):
        raise InputError(f"{graph}: expected {tensor} with {axes or 'no size known yet'}, got the shape {shape}")


def _pad(padded: np.ndarray, value: np.ndarray, tensor: TensorSpec) -> None:
    """Fill `padded` with the value, new source positions with PAD, and new rows of other axes with the first row."""
    padded[tuple(slice(size) for size in value.shape)] = value
    for k, axis in enumerate(tensor.shape):
        if padded.shape[k] > value.shape[k]:
            rows = np.moveaxis(padded, k, 0)
            rows[value.shape[k] :] = PAD if axis == "src" else rows[:1]


def _allocate(
    memory: DeviceMemory, graphs: Mapping[str, GraphSpec], buckets: Buckets
) -> tuple[dict[str, tuple[Buffer, ...]], dict[str, Pinned]]:
    """Allocate the buffers of each tensor, and pinned memory for tensors that are copied on each run.

    A next state has two buffers, because the state from which it is computed is in one of them.
    """
    outputs = {tensor.name: tensor for spec in graphs.values() for tensor in spec.outputs}
    inputs = {tensor.name: tensor for spec in graphs.values() for tensor in spec.inputs}
    from_host = {name: tensor for name, tensor in inputs.items() if name not in outputs}
    sizes = {name: buckets.max_bytes(tensor) for name, tensor in {**outputs, **from_host}.items()}
    buffers = {
        name: tuple(memory.buffer(name, size) for _ in range(2 if name.startswith(NEXT) else 1))
        for name, size in sizes.items()
    }
    return buffers, {name: memory.pinned(name, sizes[name]) for name in (*from_host, *RETURNED) if name in sizes}
