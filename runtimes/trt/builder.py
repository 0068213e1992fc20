"""From an ONNX file to an engine for this machine, or a sentence that says why not."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.config.validation import at_least
from edge_attn.errors import ConfigError, InputError, NotTestedError
from edge_attn.runtimes.system_memory import memory
from edge_attn.runtimes.trt.api import (
    Builder,
    IBuilderConfig,
    INetworkDefinition,
    IOptimizationProfile,
    ITimingCache,
    OnnxParser,
    ParserError,
    TensorRT,
)
from edge_attn.runtimes.trt.cudart import Gpu
from edge_attn.runtimes.trt.engine_cache import EngineCache, RejectedEngine
from edge_attn.runtimes.trt.engine_key import EngineKey
from edge_attn.runtimes.trt.lint import lint_network, lint_plugins, make_attention_buildable
from edge_attn.runtimes.trt.plugins import Plugin
from edge_attn.runtimes.trt.profiles import Buckets, Profile, at_most
from edge_attn.runtimes.trt.progress import Progress, Report, bar, monitor
from edge_attn.spec import GraphSpec
from edge_attn.storage.atomic import write_bytes

MIB = 1024**2
OUT_OF_MEMORY = re.compile(
    r"(?i)out of memory|outofmemory|bad_alloc|cudaerrormemoryallocation|insufficient (device )?memory"
)
"""How TensorRT and CUDA say that memory ran out."""
WORKSPACE_TOO_SMALL = re.compile(r"(?i)within workspace limit|insufficient workspace")
"""How TensorRT says that `workspace_mb` is too little."""
MAX_MIB = 2**40 - 1
"""Of any size that is given in MB: its bytes still fit into 64 bits."""
NO_REASON = "this version does not have it"
"""For parser errors that only say `false`."""
Log = Callable[[str], None]


@dataclass(frozen=True)
class BuildConfig:
    """How engines are built; a TOML file with these keys, `buckets` as a table."""

    buckets: Buckets = field(default_factory=Buckets)
    workspace_mb: int = 1024
    """Device memory that a layer may use while it runs and while it is measured."""
    max_build_minutes: float = 60.0
    """A build that takes longer is ended."""
    optimization_level: int = 3
    """TensorRT's builder level, 0 to 5: how many kernels it measures."""
    tf32: bool = False
    """Products of fp32 matrices in TF32, with 10 bits of mantissa: quicker from Ampere on, and not fp32 any more."""
    cache_mb: int = 4096
    """Size of the engine cache; the engines used longest ago go first."""

    def __post_init__(self) -> None:
        for name in ("workspace_mb", "cache_mb"):
            at_least(name, getattr(self, name), 1)
            at_most(name, getattr(self, name), MAX_MIB)
        if not 0 < self.max_build_minutes < float("inf"):  # which nan is not
            raise ConfigError(f"max_build_minutes must be a number more than 0, got {self.max_build_minutes}")
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"optimization_level must lie between 0 and 5, got {self.optimization_level}")

    def settings(self) -> str:
        """What of this changes the engine."""
        return f"workspace {self.workspace_mb} MB, level {self.optimization_level}" + (", TF32" if self.tf32 else "")


class TookTooLongError(NotTestedError):
    """A build was ended at its time limit."""


@dataclass(frozen=True)
class RtxBuildOptions:
    """What TensorRT-RTX is asked for, and does not give to every network on every machine."""

    this_gpu: bool = False
    """Kernels for the GPU of this machine alone, not for each that it knows."""
    capturable: bool = False
    """An engine that takes no memory by itself while it runs, so that a CUDA graph can hold it."""


@dataclass(frozen=True)
class Plan:
    """An engine, serialized."""

    engine: bytes
    built: bool
    """Just now; False: it was in the cache."""


def engine_for(
    tensorrt: TensorRT,
    bundle: Bundle,
    target: Target,
    graph: str,
    cache: EngineCache,
    gpu: Gpu,
    config: BuildConfig,
    say: Log,
    plugins: Mapping[str, Plugin] | None = None,
    refused: RejectedEngine | None = None,
) -> Plan:
    """The engine of one graph for this GPU: from the cache if it was not `refused`, or built, while others wait.

    `plugins` are those that serve an op of this target; their kernels are compiled only where the engine is built.
    `say` is told why it is.

    Raises:
        InputError: the graph is not one that this TensorRT builds, or the cache cannot be written.
        NotTestedError: memory or time ran out.
    """
    spec = target.graphs[graph]
    model = bundle.read(spec.file)
    served = dict(plugins or {})
    modules = _modules(target, spec)
    profiles = config.buckets.profiles(spec, bundle.manifest.max_source)
    key = EngineKey(
        label=f"{bundle.path.name}: {graph} for {target.name}",
        graph=hashlib.sha256(model).hexdigest(),
        runtime=tensorrt.name,
        gpu=f"{gpu.name}, {gpu.multiprocessors} SM",
        compute_capability=".".join(map(str, gpu.compute_capability)),
        precision=target.precision,
        profiles="; ".join(map(str, profiles)),
        plugins=", ".join(f"{op} {plugin.hash()}" for op, plugin in sorted(served.items())) or "none",
        settings=config.settings()
        + (", for this GPU and capturable where it can be" if tensorrt.capability.rtx else ""),
    )
    timing = cache.folder / f"{_file_name(key)}.timing"
    built = False

    def make() -> bytes:
        nonlocal built
        built = True
        if not gpu.integrated:  # else it is the system's memory, which build_engine asks for
            check_memory(len(model), gpu.free, f"{spec.file} on {gpu.name}")
        for plugin in served.values():
            plugin.register(tensorrt, "sm_{}{}".format(*gpu.compute_capability))
        with bar(key.label) as report:
            try:
                return build_engine(
                    tensorrt, model, spec, profiles, config, report, tuple(served), timing, True, modules
                )
            except TookTooLongError as error:
                raise NotTestedError(
                    f"{error}; give it more: edge-attn optimize {shlex.quote(str(bundle.path))} --target "
                    f"{target.target} --precision {target.precision} --build --max-build-minutes "
                    f"{2 * config.max_build_minutes:g}; or build for fewer buckets"
                ) from error

    return Plan(cache.build_once(key, make, say, 4 * len(model) + 16 * MIB, refused), built)


def _file_name(key: EngineKey) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{key.runtime}-{key.gpu}-{key.compute_capability}")


def _modules(target: Target, spec: GraphSpec) -> dict[str, str]:
    """Torch module by node, as `optimize` recorded it; empty for a bundle that was optimized before it did."""
    files = target.settings.get("modules")
    modules = files.get(spec.file) if isinstance(files, dict) else None
    return modules if isinstance(modules, dict) else {}


def build_engine(
    tensorrt: TensorRT,
    model: bytes,
    spec: GraphSpec,
    profiles: Sequence[Profile],
    config: BuildConfig,
    report: Report,
    plugins: Sequence[str] = (),
    timing: Path | None = None,
    this_gpu: bool = False,
    modules: Mapping[str, str] | None = None,
) -> bytes:
    """Parses, looks for what would silently go wrong, and builds.

    `report` is told how far it is; `timing` is the file of measurements that shortens the next build; `this_gpu`: it
    will run on the GPU of this machine, where TensorRT-RTX builds for each that it knows, without one too; `modules`
    maps a node to its torch module, for error messages.

    Raises:
        InputError: TensorRT cannot parse or build the graph, or would take it for another one.
        NotTestedError: memory or time ran out.
    """
    trt = tensorrt.trt
    check_memory(len(model), available_memory(), spec.file)
    tensorrt.log.drain_errors()
    builder: Builder = _builder(tensorrt)
    network: INetworkDefinition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser: OnnxParser = trt.OnnxParser(network, tensorrt.log)
    _parse(tensorrt, parser, model, spec, plugins, modules or {})
    _refuse(tensorrt, spec, lint_network(tensorrt, network, spec))
    make_attention_buildable(tensorrt, network)
    progress = Progress(report, 60 * config.max_build_minutes)
    watcher = monitor(tensorrt, progress)
    for wish in _wishes(tensorrt, this_gpu):
        options: IBuilderConfig = builder.create_builder_config()
        _set_options(tensorrt, options, config, wish)
        for profile in profiles:
            _add_profile(builder, options, profile, spec)
        options.progress_monitor = watcher
        if tensorrt.capability.timing_cache and timing is not None:
            _load_timing(options, timing)
        try:
            engine = builder.build_serialized_network(network, options)
        except MemoryError:
            engine = None
            tensorrt.log.errors.append("out of memory")
        forgot = any(OUT_OF_MEMORY.search(error) for error in tensorrt.log.errors)
        if engine is not None or progress.cancelled or wish == RtxBuildOptions() or forgot:
            break
        tensorrt.log.drain_errors()  # the next build says again what is wrong without the wish too
    if progress.cancelled == "keyboard":
        raise KeyboardInterrupt
    if progress.cancelled not in ("", "time"):
        raise RuntimeError(f"{spec.file}: the build's progress could not be followed: {progress.cancelled}")
    if progress.cancelled:
        raise TookTooLongError(
            f"{spec.file}: the build took longer than {config.max_build_minutes:g} minutes and was ended"
        )
    if engine is None:
        raise _failure(tensorrt, spec, config)
    if tensorrt.capability.timing_cache and timing is not None:
        _save_timing(options, timing)
    return bytes(engine)


def _builder(tensorrt: TensorRT) -> Builder:
    """
    Raises:
        NotTestedError: TensorRT does not start, because there is no GPU or its driver is too old.
    """
    try:
        return tensorrt.trt.Builder(tensorrt.log)
    except (TypeError, RuntimeError) as error:  # the bindings' words for a builder that is not there
        reason = "; ".join(" ".join(said.split()) for said in tensorrt.log.drain_errors()) or error
        raise NotTestedError(f"{tensorrt.name} does not start here: {reason}; run: edge-attn doctor") from error


def _wishes(tensorrt: TensorRT, this_gpu: bool) -> list[RtxBuildOptions]:
    """What to ask for, one after the other, until a build succeeds."""
    if not tensorrt.capability.rtx:
        return [RtxBuildOptions()]
    return [*([RtxBuildOptions(True, True)] if this_gpu else []), RtxBuildOptions(False, True), RtxBuildOptions()]


def _set_options(tensorrt: TensorRT, options: IBuilderConfig, config: BuildConfig, wish: RtxBuildOptions) -> None:
    trt = tensorrt.trt
    options.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mb * MIB)
    options.builder_optimization_level = config.optimization_level
    if not config.tf32:  # TensorRT's own choice is TF32
        options.clear_flag(trt.BuilderFlag.TF32)
    if tensorrt.capability.rtx and wish.capturable:
        options.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if tensorrt.capability.rtx and wish.this_gpu:
        options.num_compute_capabilities = 1
        options.set_compute_capability(trt.ComputeCapability.CURRENT, 0)


def _parse(
    tensorrt: TensorRT,
    parser: OnnxParser,
    model: bytes,
    spec: GraphSpec,
    plugins: Sequence[str],
    modules: Mapping[str, str],
) -> None:
    _refuse(tensorrt, spec, lint_plugins(parser, plugins))
    if not parser.parse(model):
        faults = [_parser_fault(parser, i, modules) for i in range(parser.num_errors)] or tensorrt.log.drain_errors()
        _refuse(tensorrt, spec, faults or ["its parser gives no reason"])


def _refuse(tensorrt: TensorRT, spec: GraphSpec, faults: Sequence[str]) -> None:
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(f"{spec.file} cannot be built with {tensorrt.name}: {faults[0]}{more}")


def _parser_fault(parser: OnnxParser, index: int, modules: Mapping[str, str]) -> str:
    """Node, torch module and the function calls around it; the parser names a nameless node by its output."""
    error: ParserError = parser.get_error(index)
    name, calls = error.node_name(), error.local_function_stack()
    fault = f"{error.node_operator()} {name!r}".lstrip() + _of_module(name, modules)
    if calls:
        fault += f", inside {' > '.join(calls)}" + _of_module(calls[0].rpartition(" (")[0], modules)
    reason = " ".join(error.desc().split())
    return f"{fault}: {NO_REASON if reason in ('', 'false') else reason}"


def _of_module(node: str, modules: Mapping[str, str]) -> str:
    return f" of {modules[node]}" if node in modules else ""


def _add_profile(builder: Builder, options: IBuilderConfig, profile: Profile, spec: GraphSpec) -> None:
    made: IOptimizationProfile = builder.create_optimization_profile()
    try:
        for name, (least, best, most) in profile.shapes(spec).items():
            made.set_shape(name, least, best, most)
    except (TypeError, RuntimeError) as error:  # the bindings' words for sizes that are not TensorRT's
        reason = str(error).partition("\n")[0]
        raise InputError(f"{spec.file}: TensorRT does not take the profile {profile}: {reason}") from error
    if options.add_optimization_profile(made) < 0:
        raise InputError(f"{spec.file}: TensorRT does not take the profile {profile}")


def _failure(tensorrt: TensorRT, spec: GraphSpec, config: BuildConfig) -> Exception:
    errors = [" ".join(error.split()) for error in tensorrt.log.drain_errors()]
    if any(OUT_OF_MEMORY.search(error) for error in errors):
        return NotTestedError(
            f"{spec.file}: memory ran out while the engine was built; give less than {config.workspace_mb} MB to "
            f"workspace_mb, build for fewer or smaller buckets, or end other programs"
        )
    if any(WORKSPACE_TOO_SMALL.search(error) for error in errors):
        return InputError(
            f"{spec.file} cannot be built with {tensorrt.name} in {config.workspace_mb} MB of workspace; give more to "
            f"workspace_mb, in the file of --profiles"
        )
    return InputError(
        f"{spec.file} cannot be built with {tensorrt.name}: {errors[-1] if errors else 'no reason is given'}"
    )


def _load_timing(options: IBuilderConfig, path: Path) -> None:
    """Measurements of earlier builds; another version's, or none, are left out."""
    try:
        measured = path.read_bytes()
    except OSError:
        measured = b""
    cache: ITimingCache = options.create_timing_cache(measured)
    if (cache is None or not options.set_timing_cache(cache, False)) and measured:
        empty: ITimingCache = options.create_timing_cache(b"")
        options.set_timing_cache(empty, False)


def _save_timing(options: IBuilderConfig, path: Path) -> None:
    cache: ITimingCache = options.get_timing_cache()
    if cache is None:
        return
    try:
        write_bytes(path, bytes(cache.serialize()))
    except OSError:
        return  # the engine is there; the next build takes longer


def available_memory() -> int:
    """Bytes that programs may still ask for here, in a container within its limit; on a Jetson the GPU takes its own
    from the same."""
    found = memory()
    return sys.maxsize if found is None else found.available


def check_memory(model: int, available: int, what: str) -> None:
    """
    Raises:
        NotTestedError: less is free than parsing and building a graph of `model` bytes took where it was measured.
    """
    needed = 256 * MIB + 4 * model
    if available < needed:
        raise NotTestedError(
            f"{what}: building its engine needs about {needed // MIB} MB of memory, {available // MIB} MB are free; "
            f"end other programs (on a Jetson, the desktop first)"
        )
