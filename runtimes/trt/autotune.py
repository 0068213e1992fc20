"""Which engine runs a graph that has a variant with a plugin (runtimes/trt/plugins): the quicker one on this device.

`optimize --plugin` keeps the inlined graphs and, beside them, `settings["plugins"]`: the ops that were asked for and
the file of each variant. Both engines are built and timed as they will run, in every profile and in turns. What was
decided is kept beside the engines, for these two; an engine that is built again is measured again. Where the plugin
cannot be had, one line says why, and the inlined graph runs, which computes the same. Only a fault of the plugin's own
is remembered: a network that the builder refuses, a build that takes too long, an engine that does not load or run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.errors import BundleError, EdgeAttnError, InputError, NotTestedError
from edge_attn.runtimes.trt.api import TensorRT
from edge_attn.runtimes.trt.buffers import Buffer, DeviceMemory
from edge_attn.runtimes.trt.builder import OUT_OF_MEMORY, BuildConfig, Plan, Say, TookTooLongError, engine_for
from edge_attn.runtimes.trt.contexts import Contexts, kernels_file
from edge_attn.runtimes.trt.cudart import Cuda, Gpu
from edge_attn.runtimes.trt.engine_cache import EngineCache, RejectedEngine
from edge_attn.runtimes.trt.execution import Launches, LaunchKey
from edge_attn.runtimes.trt.plugins import Plugin, plugins_for
from edge_attn.runtimes.trt.profiles import Bucket
from edge_attn.spec import GraphSpec, TensorSpec
from edge_attn.storage.atomic import write_bytes

WINS = 0.98
"""The plugin is used if it takes at most this part of the time, the profiles' geometric mean; more is not told from
noise."""
WARM, TURNS = 3, 20
"""Runs of each engine in each profile that do not count, the CUDA graph's capture among them; and those that do."""
LOW_MEMORY = re.compile(OUT_OF_MEMORY.pattern + "|too little memory|MemoryError")
"""How a fault says that there was too little memory."""


@dataclass(frozen=True)
class Timed:
    """One profile: medians in milliseconds."""

    bucket: Bucket
    inlined: float
    plugin: float

    def __str__(self) -> str:
        sizes = f"batch {self.bucket.batch}, src {self.bucket.src}"
        return f"{self.plugin:.3f} ms with it and {self.inlined:.3f} ms without ({sizes})"


@dataclass(frozen=True)
class Choice:
    """What was decided."""

    plugin: bool
    why: str
    engine: str
    """sha256 of the plugin's engine; empty if it could not be built."""


UNDECIDED = Choice(True, "", "")
"""No engine is the one that it is for."""


@dataclass(eq=False)
class RefusedError(Exception):
    """TensorRT refused one of the two engines, which came from the cache."""

    refused: RejectedEngine


@dataclass(eq=False)
class Engines:
    """The engines of a target's graphs for this device, each the quicker one where there are two."""

    tensorrt: TensorRT
    cuda: Cuda
    gpu: Gpu
    bundle: Bundle
    target: Target
    config: BuildConfig
    cache: EngineCache
    say: Say
    chosen: dict[str, str] = field(default_factory=dict)
    """What runs a graph that has a variant, for people."""

    def plan(self, graph: str, refused: RejectedEngine | None = None) -> Plan:
        """The engine of a graph; one that TensorRT `refused` is built again, and a plugin's measured again too.

        Raises:
            InputError, NotTestedError: as engine_for; for the plugin's sake only where it ended CUDA.
        """
        ops, variants = plugins_of(self.target)
        inlined = self._engine(graph, self.target.graphs[graph], refused=refused)
        if graph not in variants:
            return inlined
        variant = dataclasses.replace(self.target.graphs[graph], file=variants[graph])
        try:
            return self._choose(graph, variant, ops, inlined, refused)
        except RefusedError as error:
            return self.plan(graph, error.refused)

    def _engine(
        self,
        graph: str,
        spec: GraphSpec,
        plugins: Mapping[str, Plugin] | None = None,
        refused: RejectedEngine | None = None,
    ) -> Plan:
        target = dataclasses.replace(self.target, graphs={graph: spec})
        return engine_for(
            self.tensorrt, self.bundle, target, graph, self.cache, self.gpu, self.config, self.say, plugins, refused
        )

    def _choose(
        self, graph: str, variant: GraphSpec, ops: Sequence[str], inlined: Plan, refused: RejectedEngine | None
    ) -> Plan:
        """The engine with the plugin, or `inlined`; says which and why where that is decided now.

        Raises:
            RefusedError: one of them must be built again.
            NotTestedError: the plugin ended CUDA in this process.
        """
        what = f"{graph} with {', '.join(ops)}"
        plan, engine, lasts = inlined, "", True
        record: Path | None = None
        kept = UNDECIDED
        try:
            if not self.tensorrt.capability.aot_plugins:
                raise NotTestedError(f"{self.tensorrt.name} takes no ahead-of-time plugin, TensorRT 10.13 and newer do")
            plugins = plugins_for(self.target.target, ops)
            record = self._record(graph, variant, plugins, inlined)
            decided = kept = UNDECIDED if inlined.built else _read(record)
            if kept.plugin:
                plan = self._engine(what, variant, plugins, refused)
                engine = hashlib.sha256(plan.engine).hexdigest()
                if plan.built or kept.engine != engine:
                    decided = decide(self._time(variant, {graph: inlined, what: plan}), engine)
        except RefusedError:
            raise
        except Exception as error:  # whatever it is, the inlined graph runs
            said = str(error) if isinstance(error, EdgeAttnError) else f"{type(error).__name__}: {error}"
            decided = Choice(False, " ".join(said.split()), engine)
            lasts = LOW_MEMORY.search(said) is None if engine else _of_the_network(error)
        with_it = f"with{'' if decided.plugin else 'out'} the plugin {', '.join(ops)}"
        self.chosen[graph] = f"{graph} {with_it}"
        if decided is not kept:
            self.say(f"{self.bundle.path.name}: {graph} for {self.target.name} runs {with_it}: {decided.why}")
            ended = record is not None and self._ended()
            if record is not None and (lasts or ended):
                _write(record, decided)
            if ended:
                raise NotTestedError(
                    f"{what}: the plugin's fault ended CUDA in this process; run the command again, it is not tried "
                    f"again"
                )
        return plan if decided.plugin else inlined

    def _record(self, graph: str, variant: GraphSpec, plugins: Mapping[str, Plugin], inlined: Plan) -> Path:
        """Where the choice is kept: `cache clear` removes it with all that builds measured."""
        engines = (hashlib.sha256(data).hexdigest() for data in (inlined.engine, self.bundle.read(variant.file)))
        made_of = [*engines, graph, self.gpu.name, str(self.config), *(plugin.hash() for plugin in plugins.values())]
        digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:32]
        return self.cache.folder / f"tensorrt-choice-{digest}.timing"

    def _time(self, spec: GraphSpec, plans: Mapping[str, Plan]) -> list[Timed]:
        """`plans`: the inlined one first.

        Raises:
            RefusedError: one of them must be built again.
        """
        buckets = self.config.buckets.up_to(self.bundle.manifest.max_source).all()

        def refuse(name: str, refused: RejectedEngine) -> Plan:
            raise RefusedError(refused)

        held = contextlib.ExitStack()
        try:
            memory = DeviceMemory(self.cuda, held)
            contexts = Contexts(self.tensorrt, kernels_file(self.cache.folder, self.tensorrt, self.gpu))
            launches = Launches(self.tensorrt, self.cuda, memory, dict.fromkeys(plans, spec), contexts)
            held.callback(launches.close)
            launches.load(plans, len(buckets), refuse)
            tensors = (*spec.inputs, *spec.outputs)
            buffers = [memory.buffer(tensor.name, _largest(tensor, buckets)) for tensor in tensors]
            held.callback(memory.synchronize)
            return race(self.cuda, memory, launches, spec, buckets, buffers)
        except BaseException:
            with contextlib.suppress(EdgeAttnError):  # after a kernel that went astray nothing is given back
                held.close()
            raise
        finally:
            held.close()

    def _ended(self) -> bool:
        """Whether a kernel went astray: then CUDA does nothing more in this process."""
        try:
            self.cuda.memory()
        except NotTestedError:
            return True
        return False


def _of_the_network(fault: Exception) -> bool:
    """Whether what failed before there was an engine fails again: the builder refused the network, or took too long.

    A disk, a compiler or memory may be there the next time.
    """
    refused = isinstance(fault, InputError) and not isinstance(fault.__cause__, OSError)
    return refused or isinstance(fault.__cause__, TookTooLongError)


def plugins_of(target: Target) -> tuple[tuple[str, ...], dict[str, str]]:
    """The ops that plugins were asked for, and the file of each graph's variant; nothing where there are none.

    Raises:
        BundleError: the bundle names them in another way.
    """
    found = target.settings.get("plugins") or {"ops": [], "graphs": {}}
    try:
        return tuple(map(str, found["ops"])), {str(graph): str(file) for graph, file in found["graphs"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"targets: {target.name}: plugins: expected ops and the file of each graph, got {found}; make the target "
            f"again, with edge-attn optimize --force"
        ) from error


def decide(timed: Sequence[Timed], engine: str) -> Choice:
    """`engine` is that of the plugin."""
    took, limit = math.prod(one.plugin for one in timed), math.prod(WINS * one.inlined for one in timed)
    return Choice(took <= limit, f"one run takes {'; '.join(dict.fromkeys(map(str, (timed[0], timed[-1]))))}", engine)


def race(
    cuda: Cuda,
    memory: DeviceMemory,
    launches: Launches,
    spec: GraphSpec,
    buckets: Sequence[Bucket],
    buffers: Sequence[Buffer],
) -> list[Timed]:
    """Both engines of `launches` in every bucket, on numbers that every graph takes; `buffers`: for each tensor."""
    addresses = tuple(buffer.address for buffer in buffers)
    timed = []
    for bucket in buckets:
        shapes = tuple(_sized(tensor, bucket) for tensor in (*spec.inputs, *spec.outputs))
        for tensor, buffer, shape in zip(spec.inputs, buffers, shapes, strict=False):
            memory.write(buffer, _filled(tensor, shape))
        bounds = {name: LaunchKey(name, bucket.index, shapes, addresses, (), ()) for name in launches.graphs}
        took: dict[str, list[float]] = {name: [] for name in bounds}
        for _ in range(WARM + TURNS):
            for name, bound in bounds.items():
                began = perf_counter()
                memory.mark_busy()
                launches.run(bound)
                cuda.synchronize(memory.stream)
                took[name].append(1e3 * (perf_counter() - began))
        inlined, plugin = (statistics.median(times[WARM:]) for times in took.values())
        timed.append(Timed(bucket, inlined, plugin))
    return timed


def _sized(tensor: TensorSpec, bucket: Bucket) -> tuple[int, ...]:
    axes = {"batch": bucket.batch, "src": bucket.src, "beam": bucket.beam, "previous_beam": bucket.beam}
    return tuple(axes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)


def _largest(tensor: TensorSpec, buckets: Sequence[Bucket]) -> int:
    """Bytes of the tensor in the bucket where it is largest."""
    return max(math.prod(_sized(tensor, bucket)) for bucket in buckets) * np.dtype(tensor.dtype).itemsize


def _filled(tensor: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers near zero; the first token or row; and no masked place, so that nothing is left out."""
    if tensor.dtype.startswith("float"):
        return np.random.default_rng(0).uniform(-1, 1, shape).astype(tensor.dtype)
    return np.full(shape, tensor.dtype == "bool", tensor.dtype)


def _read(path: Path) -> Choice:
    """UNDECIDED where there is none, or nothing that can be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Choice(bool(found["plugin"]), str(found["why"]), str(found["engine"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return UNDECIDED


def _write(path: Path, choice: Choice) -> None:
    with contextlib.suppress(OSError):  # then it is measured again
        write_bytes(path, (json.dumps(dataclasses.asdict(choice), indent=1, sort_keys=True) + "\n").encode())
