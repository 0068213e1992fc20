"""Choice between the inlined engine of a graph and the one with a plugin (runtimes/trt/plugins), measured once.

`optimize --plugin` stores a variant of each graph that calls the op, under `settings["plugins"]` of the target.
`optimize --build` runs on the device: `Engines.measure` times both engines there, and the bundle stores the result
under `settings["plugins"]["measured"]`. The runtime only reads it. The inlined graph, which computes the same, runs
where nothing was measured with this GPU, TensorRT and kernel, or the plugin's engine fails; one line gives the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.errors import BundleError, EdgeAttnError, NotTestedError
from edge_attn.runtimes.trt.api import TensorRT
from edge_attn.runtimes.trt.buffers import DeviceMemory
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.builder import Log, Plan, engine_for
from edge_attn.runtimes.trt.contexts import Contexts, kernels_file
from edge_attn.runtimes.trt.cudart import Cuda, Gpu
from edge_attn.runtimes.trt.engine_cache import EngineCache, RejectedEngine
from edge_attn.runtimes.trt.execution import Launches, LaunchKey
from edge_attn.runtimes.trt.plugins import plugins_for
from edge_attn.spec import TensorSpec

MAX_TIME_RATIO = 0.98
"""Largest ratio of the plugin's time to the inlined engine's, as the geometric mean over the profiles, at which the
plugin runs; above it noise may decide."""
WARMUP_RUNS, TIMED_RUNS = 3, 20
"""Runs of each engine in each profile: the first ones, which include the CUDA graph's capture, and those timed."""


@dataclass(frozen=True)
class Timing:
    """Median time of one run of both engines in one profile."""

    batch: int
    src: int
    inlined_ms: float
    plugin_ms: float

    def __str__(self) -> str:
        times = f"{self.plugin_ms:.3f} ms with it and {self.inlined_ms:.3f} ms without"
        return f"{times} (batch {self.batch}, src {self.src})"


@dataclass(eq=False)
class Engines:
    """Engines of a target's graphs for this device."""

    tensorrt: TensorRT
    cuda: Cuda
    gpu: Gpu
    bundle: Bundle
    target: Target
    config: BuildConfig
    cache: EngineCache
    log: Log
    chosen: dict[str, str] = field(default_factory=dict)
    """Sentence for people about each graph that has a variant."""

    def plan(self, graph: str, rejected: RejectedEngine | None = None) -> Plan:
        """Return the engine of a graph: the one with the plugin if it was measured here to be faster.

        Args:
            graph: name of the graph.
            rejected: engine of the cache that TensorRT did not load; an inlined one is built again, one with a plugin
                is replaced by the inlined one.

        Raises:
            InputError, NotTestedError: as engine_for, for the inlined graph.
        """
        plan, reason = None, ""
        if graph in plugins_of(self.target)[1]:
            try:
                if self._plugin_is_faster(graph):
                    if rejected is not None:
                        raise NotTestedError(rejected.reason)
                    plan = self._engine(graph, with_plugin=True)
            except Exception as error:  # the inlined graph runs, whatever TensorRT's plugin interface raises
                reason = _one_line(error)
            self._choose(graph, plan is not None, reason)
        return plan or self._engine(graph, rejected=rejected)

    def measure(self) -> dict[str, Any]:
        """Return what `settings["plugins"]["measured"]` stores: for each variant the choice, its reason, the timings.

        Raises:
            InputError, NotTestedError: as engine_for, for an inlined graph.
            UsageError: this version does not have the plugin.
        """
        environment, graphs = self._environment(), {}
        for graph in plugins_of(self.target)[1]:
            inlined, timings = self._engine(graph), []
            try:
                self._refuse_without_plugins()
                timings = self._time(graph, {"inlined": inlined, "plugin": self._engine(graph, with_plugin=True)})
                reason = f"one run takes {'; '.join(dict.fromkeys(map(str, (timings[0], timings[-1]))))}"
            except Exception as error:  # the inlined graph runs, whatever TensorRT's plugin interface raises
                reason = _one_line(error)
            ratios = [timing.plugin_ms / timing.inlined_ms for timing in timings]
            faster = bool(ratios) and statistics.geometric_mean(ratios) <= MAX_TIME_RATIO
            graphs[graph] = {"plugin": faster, "reason": reason, "timings": [*map(dataclasses.asdict, timings)]}
            self._choose(graph, faster, reason)
        return {**environment, "graphs": graphs}

    def _choose(self, graph: str, plugin: bool, reason: str) -> None:
        """Note what runs a graph, and report the reason if there is one that was not reported before."""
        chosen = f"{graph} with{'' if plugin else 'out'} the plugin {', '.join(plugins_of(self.target)[0])}"
        if reason and self.chosen.get(graph) != chosen:
            self.log(f"{self.bundle.path.name}: {self.target.name} runs {chosen}: {reason}")
        self.chosen[graph] = chosen

    def _plugin_is_faster(self, graph: str) -> bool:
        """Return the stored choice.

        Raises:
            NotTestedError: nothing was measured with this GPU, TensorRT and kernel.
        """
        self._refuse_without_plugins()
        measured = self.target.settings["plugins"].get("measured", {})
        choice = measured.get("graphs", {}).get(graph, {})
        path, target = shlex.quote(str(self.bundle.path)), f"{self.target.target} --precision {self.target.precision}"
        todo = f"to measure both engines here, run: edge-attn optimize {path} --target {target} --build"
        if "plugin" not in choice:
            raise NotTestedError(f"its engine was not measured; {todo}")
        for name, value in self._environment().items():
            if measured.get(name) != value:
                raise NotTestedError(f"its engine was measured with {measured.get(name)}, this is {value}; {todo}")
        return bool(choice["plugin"])

    def _environment(self) -> dict[str, str]:
        """Return everything that a measurement depends on."""
        kernels = [
            f"{op} {plugin.hash()[:16]}"
            for op, plugin in plugins_for(self.target.target, plugins_of(self.target)[0]).items()
        ]
        gpu = f"{self.gpu.name}, {self.gpu.multiprocessors} SM"
        return {"runtime": self.tensorrt.name, "gpu": gpu, "kernels": ", ".join(kernels)}

    def _refuse_without_plugins(self) -> None:
        if not self.tensorrt.capability.aot_plugins:
            raise NotTestedError(f"{self.tensorrt.name} takes no ahead-of-time plugin, TensorRT 10.13 and newer do")

    def _engine(self, graph: str, with_plugin: bool = False, rejected: RejectedEngine | None = None) -> Plan:
        name, spec, plugins = graph, self.target.graphs[graph], {}
        if with_plugin:
            ops, variants = plugins_of(self.target)
            plugins = plugins_for(self.target.target, ops)
            name, spec = f"{graph} with {', '.join(plugins)}", dataclasses.replace(spec, file=variants[graph])
        target = dataclasses.replace(self.target, graphs={name: spec})
        return engine_for(
            self.tensorrt, self.bundle, target, name, self.cache, self.gpu, self.config, self.log, plugins, rejected
        )

    def _time(self, graph: str, plans: Mapping[str, Plan]) -> list[Timing]:
        """Load the engines `inlined` and `plugin`, and time them in turns in every profile."""
        spec = self.target.graphs[graph]
        tensors = (*spec.inputs, *spec.outputs)
        buckets = self.config.buckets.up_to(self.bundle.manifest.max_source)
        timings = []

        def build_again(name: str, rejected: RejectedEngine) -> Plan:
            return self._engine(graph, name == "plugin", rejected)

        with contextlib.ExitStack() as cleanup:
            memory = DeviceMemory(self.cuda, cleanup)
            contexts = Contexts(self.tensorrt, kernels_file(self.cache.folder, self.tensorrt, self.gpu))
            launches = Launches(self.tensorrt, self.cuda, memory, dict.fromkeys(plans, spec), contexts)
            cleanup.callback(launches.close)
            launches.load(plans, len(buckets.all()), build_again)
            buffers = [memory.buffer(tensor.name, buckets.max_bytes(tensor)) for tensor in tensors]
            cleanup.callback(memory.synchronize)
            addresses = tuple(buffer.address for buffer in buffers)
            for bucket in buckets.all():
                shapes = tuple(bucket.shape(tensor) for tensor in tensors)
                for tensor, buffer, shape in zip(spec.inputs, buffers, shapes, strict=False):
                    memory.write(buffer, _example_input(tensor, shape))
                milliseconds: dict[str, list[float]] = {name: [] for name in plans}
                for _ in range(WARMUP_RUNS + TIMED_RUNS):
                    for name, times in milliseconds.items():
                        key = LaunchKey(name, bucket.index, shapes, addresses, (), ())
                        start = perf_counter()
                        memory.mark_busy()
                        launches.run(key)
                        self.cuda.synchronize(memory.stream)
                        times.append(1e3 * (perf_counter() - start))
                medians = {name: statistics.median(times[WARMUP_RUNS:]) for name, times in milliseconds.items()}
                timings.append(Timing(bucket.batch, bucket.src, medians["inlined"], medians["plugin"]))
        return timings


def plugins_of(target: Target) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the ops that `optimize --plugin` named and the file of each graph's variant; both empty without it.

    Raises:
        BundleError: the bundle stores them in another form.
    """
    stored = target.settings.get("plugins") or {"ops": [], "graphs": {}}
    try:
        return tuple(map(str, stored["ops"])), {str(graph): str(file) for graph, file in stored["graphs"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"targets: {target.name}: plugins: expected ops and the file of each graph, got {stored}; make the target "
            f"again, with edge-attn optimize --force"
        ) from error


def _example_input(tensor: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    """Return values that every graph takes: floats near zero, index 0, and masks that are true throughout."""
    if tensor.dtype.startswith("float"):
        return np.random.default_rng(0).uniform(-1, 1, shape).astype(tensor.dtype)
    return np.full(shape, tensor.dtype == "bool", tensor.dtype)


def _one_line(error: Exception) -> str:
    return " ".join((str(error) if isinstance(error, EdgeAttnError) else f"{type(error).__name__}: {error}").split())
