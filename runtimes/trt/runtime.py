"""TensorRT: encoder and step engines on an NVIDIA GPU or a Jetson, driven by the one search.

The engines come from the cache, or are built first (runtimes/trt/builder.py). Device buffers are allocated when the
runtime is opened, at the size of the largest bucket, and bound by address. What the encoder gives and the states stay
there: a step reads its state from one buffer and writes the next one into another, and no value is copied. Only the
candidates come back with each step, and what `numpy` asks for.

A request is padded to its bucket in batch and src (rows repeat the first, positions are PAD, which the mask hides) and
trimmed again on the way back, so that its shapes are those of few launches; beams are not padded, since a search has
only two. No engine has run on a GPU in this project's tests: they run this file, and all that it calls, on a fake.
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
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.config.validation import from_mapping
from edge_attn.errors import InputError, NotTestedError, UsageError
from edge_attn.runtimes.trt.api import TensorRT, load_tensorrt
from edge_attn.runtimes.trt.autotune import Engines
from edge_attn.runtimes.trt.buffers import Buffer, DeviceMemory, OnDevice, Pinned
from edge_attn.runtimes.trt.builder import MIB, BuildConfig, Say
from edge_attn.runtimes.trt.contexts import Contexts, kernels_file
from edge_attn.runtimes.trt.cudart import format_mib, open_cuda
from edge_attn.runtimes.trt.engine_cache import EngineCache, cache_folder
from edge_attn.runtimes.trt.execution import Launches, LaunchKey
from edge_attn.runtimes.trt.profiles import Buckets, Shape
from edge_attn.runtimes.versions import parse_version
from edge_attn.spec import GraphSpec, TensorSpec, Value
from edge_attn.text.tokenizers import PAD

DEFAULT = RuntimeOptions()
NEXT = "next_"
"""What stands before the name of a state where a step gives the next one."""
READ = ("candidates", "candidate_ids")
"""What a search reads after each step: it is copied to the host by the launch itself."""


@dataclass(frozen=True)
class PaddedShapes:
    """How a request lies in its bucket."""

    profile: int
    padded: tuple[Shape, ...]
    """Of the inputs, then of the outputs."""
    asked: tuple[Shape, ...]
    """Of the outputs, without their padding."""


class Trt:
    """Every graph of a bundle in TensorRT; for one thread at a time.

    Raises:
        NotTestedError: TensorRT, CUDA, a device or the target's graphs are not here; too little memory.
        InputError: the engine cannot be built, or not kept.
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
        self._engine, self._chosen = f"{tensorrt.name} on {gpu.name}", engines.chosen
        buckets = config.buckets.up_to(bundle.manifest.max_source)
        self.max_batch = buckets.batch[-1]
        """Sentences that it takes at a time."""
        self._fit = functools.lru_cache(maxsize=4096)(functools.partial(_fit, self.graphs, buckets))
        with contextlib.ExitStack() as held:
            self._memory = DeviceMemory(cuda, held)
            self._buffers, self._staging = _allocate(self._memory, self.graphs, buckets)
            contexts = Contexts(tensorrt, kernels_file(cache.folder, tensorrt, gpu))
            self._launches = Launches(tensorrt, cuda, self._memory, self.graphs, contexts)
            held.callback(self._launches.close)
            self._launches.load(plans, len(buckets.all()), engines.plan)
            held.callback(self._memory.synchronize)
            self._held = weakref.finalize(self, held.pop_all().close)

    @property
    def device_memory(self) -> int:
        """Bytes of its buffers on the device; TensorRT keeps the engines' weights beside them."""
        return self._memory.device_bytes

    @property
    def provider(self) -> str:
        """What runs here, on what, and how the graphs that ran are started."""
        captured, enqueued = self._launches.captured(), sorted(self._launches.enqueued)
        said = [self._engine, *self._chosen.values(), f"buffers of {format_mib(self.device_memory)}"]
        said += [f"as CUDA graphs: {', '.join(captured)}"] if captured else []
        said += [f"not capturable: {', '.join(enqueued)}"] if enqueued else []
        return "; ".join(said)

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Starts one graph; its outputs stay on the device.

        Raises:
            InputError: no bucket covers the request, or an input does not fit the graph or the others.
            EdgeAttnError: a value that was overwritten since.
        """
        self._refuse_closed()
        spec = self.graphs[graph]
        values = [inputs[tensor.name] for tensor in spec.inputs]
        for tensor, value in zip(spec.inputs, values, strict=True):
            if value.dtype != tensor.dtype:
                raise InputError(f"{graph}: expected {tensor}, got {value.dtype}")
        device_shape = tuple(
            self._memory.device_shape(value) if isinstance(value, OnDevice) else None for value in values
        )
        fit = self._fit(graph, tuple(value.shape for value in values), device_shape)
        self._memory.synchronize()
        uploads: list[tuple[int, int, int]] = []
        pairs = zip(spec.inputs, values, fit.padded, strict=False)
        buffers = [self._stage_input(tensor, value, shape, uploads) for tensor, value, shape in pairs]
        outputs = {}
        downloads: list[tuple[int, int, int]] = []
        for tensor, shape, padded_shape in zip(spec.outputs, fit.asked, fit.padded[len(values) :], strict=True):
            buffer = self._output_buffer(tensor, buffers)
            buffer.generation += 1
            buffers.append(buffer)
            returned = self._staging.get(tensor.name)
            outputs[tensor.name] = OnDevice(buffer, buffer.generation, tensor.dtype, shape, padded_shape, returned)
            if returned is not None:
                size = math.prod(padded_shape) * np.dtype(tensor.dtype).itemsize
                downloads.append((returned.address, buffer.address, size))
        addresses = tuple(buffer.address for buffer in buffers)
        self._memory.mark_busy()
        self._launches.run(LaunchKey(graph, fit.profile, fit.padded, addresses, tuple(uploads), tuple(downloads)))
        return outputs

    def numpy(self, value: Value) -> np.ndarray:
        """A copy of a value, without its padding.

        Raises:
            EdgeAttnError: the value was overwritten since.
        """
        if isinstance(value, np.ndarray):
            return value
        self._refuse_closed()
        return self._memory.read(value)

    def select_rows(self, value: Value, index: np.ndarray) -> Value | None:
        """Whole: launches are captured for the batch that they began with."""
        return None

    def close(self) -> None:
        """Frees all that it holds on the device; twice is no fault. A runtime that nobody holds does it too."""
        self._held()

    def _refuse_closed(self) -> None:
        if not self._held.alive:
            raise UsageError(f"the runtime {self.name} was closed; open the bundle again")

    def _stage_input(
        self, tensor: TensorSpec, value: Value, shape: Shape, uploads: list[tuple[int, int, int]]
    ) -> Buffer:
        """The buffer in which an input lies. What the host gives each time is put where the launch will copy it from;
        memory or a state that is an array goes to the device now."""
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

    def _output_buffer(self, output: TensorSpec, taken: Sequence[Buffer]) -> Buffer:
        """Where an output goes: a buffer of its own that no input lies in. A cache that is updated in place would go
        where its input lies (Capability.inplace_cache)."""
        return next(buffer for buffer in self._buffers[output.name] if buffer not in taken)


class TrtRtx(Trt):
    """The same in TensorRT-RTX, which compiles an engine's kernels for the GPU each time that a context is made."""

    name = "trt-rtx"
    rtx = True


def open_engines(
    bundle: Bundle, options: RuntimeOptions = DEFAULT, say: Say | None = None, rtx: bool = False
) -> Engines:
    """Return the engines of a bundle's target on this device, each of which is built, or read from the cache, on use.

    Args:
        bundle: the bundle.
        options: precision and cache folder.
        say: takes one line for each build; standard error by default.
        rtx: use TensorRT-RTX.

    Raises:
        NotTestedError: TensorRT, CUDA, a device or the target's graphs are not here, or this TensorRT is too old.
    """
    tensorrt, cuda = load_tensorrt(rtx), open_cuda()
    gpu = cuda.gpu()
    target = bundle.target("trt", options.precision)
    _refuse_older(tensorrt, bundle, target)
    config = build_config(target)
    cache = EngineCache(cache_folder(options.cache_dir), config.cache_mb * MIB)
    return Engines(tensorrt, cuda, gpu, bundle, target, config, cache, say or _say)


def build_config(target: Target) -> BuildConfig:
    """How a target's engines are built: as `optimize` was told, and noted with the graphs."""
    return from_mapping(BuildConfig, target.settings.get("build", {}), f"targets: {target.name}: build")


def _refuse_older(tensorrt: TensorRT, bundle: Bundle, target: Target) -> None:
    """
    Raises:
        NotTestedError: the target's graphs were made for newer versions of TensorRT only.
    """
    oldest = str(target.settings.get("min_version", ""))
    level = tensorrt.capability.level
    if level < parse_version(oldest)[: len(level)]:
        found = ".".join(map(str, level[:2]))
        path = shlex.quote(str(bundle.path))
        raise NotTestedError(
            f"{bundle.path} holds {target.name} for TensorRT {oldest} or newer, got {tensorrt.name}; run: edge-attn "
            f"optimize {path} --target trt --precision {target.precision} --min-version {found} --force"
        )


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _fit(
    graphs: Mapping[str, GraphSpec],
    buckets: Buckets,
    graph: str,
    shapes: tuple[Shape, ...],
    device_shapes: tuple[Shape | None, ...],
) -> PaddedShapes:
    """`shapes` are those of the inputs; `device_shapes` the padded ones of those on the device."""
    spec = graphs[graph]
    asked: dict[str, int] = {}
    there: dict[str, int] = {}
    for tensor, shape, on_device in zip(spec.inputs, shapes, device_shapes, strict=True):
        _note(graph, tensor, shape, asked)
        if on_device is not None:
            _note(graph, tensor, on_device, there)
    buckets.pick(*_request(asked))
    bucket = buckets.pick(*_request({**asked, **there}))
    axes = {**asked, **there, "batch": bucket.batch, "src": bucket.src}
    padded = tuple(_sized(tensor, axes) for tensor in (*spec.inputs, *spec.outputs))
    return PaddedShapes(bucket.index, padded, tuple(_sized(tensor, asked) for tensor in spec.outputs))


def _request(axes: Mapping[str, int]) -> tuple[int, int, int]:
    """Batch, src and beam, for Buckets.pick."""
    return axes["batch"], axes.get("src", 1), max(axes.get("beam", 1), axes.get("previous_beam", 1))


def _note(graph: str, tensor: TensorSpec, shape: Shape, axes: dict[str, int]) -> None:
    """Adds the sizes of the tensor's axes to `axes`; refuses a shape that fits neither it nor what is there."""
    pairs = zip(tensor.shape, shape, strict=False)
    wrong = [n for axis, n in pairs if n != (axes.setdefault(axis, n) if isinstance(axis, str) else axis) or n < 1]
    if wrong or len(shape) != len(tensor.shape):
        raise InputError(f"{graph}: expected {tensor} with {axes or 'no size known yet'}, got the shape {shape}")


def _sized(tensor: TensorSpec, axes: Mapping[str, int]) -> Shape:
    return tuple([axes[axis] if isinstance(axis, str) else axis for axis in tensor.shape])


def _pad(padded: np.ndarray, value: np.ndarray, tensor: TensorSpec) -> None:
    """Fills `padded`: source positions with PAD, other axes with their first row, which is a valid one."""
    padded[tuple(slice(size) for size in value.shape)] = value
    for k, axis in enumerate(tensor.shape):
        if padded.shape[k] > value.shape[k]:
            rows = np.moveaxis(padded, k, 0)
            rows[value.shape[k] :] = PAD if axis == "src" else rows[:1]


def _allocate(
    memory: DeviceMemory, graphs: Mapping[str, GraphSpec], buckets: Buckets
) -> tuple[dict[str, tuple[Buffer, ...]], dict[str, Pinned]]:
    """Each tensor's buffers, at the size of the largest bucket, and the pinned memory of what the host gives and reads
    each time.

    A next state has two, since the state that it is made of lies in one of them.
    """
    outputs = {tensor.name: tensor for spec in graphs.values() for tensor in spec.outputs}
    inputs = {tensor.name: tensor for spec in graphs.values() for tensor in spec.inputs}
    fed = {name: tensor for name, tensor in inputs.items() if name not in outputs}
    sizes = {name: buckets.max_bytes(tensor) for name, tensor in {**outputs, **fed}.items()}
    buffers = {
        name: tuple(memory.buffer(name, size) for _ in range(2 if name.startswith(NEXT) else 1))
        for name, size in sizes.items()
    }
    return buffers, {name: memory.pinned(name, sizes[name]) for name in (*fed, *READ) if name in sizes}
