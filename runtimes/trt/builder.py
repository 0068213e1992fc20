"""Build of a TensorRT engine from an ONNX graph, for the GPU of this machine."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.errors import InputError, NotTestedError
from edge_attn.runtimes.trt.api import (
    Builder,
    IBuilderConfig,
    INetworkDefinition,
    IOptimizationProfile,
    OnnxParser,
    ParserError,
    TensorRT,
)
from edge_attn.runtimes.trt.build_config import MIB, BuildConfig
from edge_attn.runtimes.trt.cudart import Gpu
from edge_attn.runtimes.trt.engine_cache import EngineCache, RejectedEngine
from edge_attn.runtimes.trt.engine_key import EngineKey
from edge_attn.runtimes.trt.lint import lint_network, lint_plugins, mark_attention_decomposable
from edge_attn.runtimes.trt.plugins import Plugin
from edge_attn.runtimes.trt.profiles import Profile
from edge_attn.runtimes.trt.progress import BuildProgress, ProgressCallback, progress_bar, progress_monitor
from edge_attn.runtimes.trt.timing_cache import load_timing_cache, save_timing_cache
from edge_attn.spec import GraphSpec
from edge_attn.system_memory import system_memory

OUT_OF_MEMORY = re.compile(
    r"(?i)out of memory|outofmemory|bad_alloc|cudaerrormemoryallocation|insufficient (device )?memory"
)
"""Messages of TensorRT and CUDA about too little memory."""
WORKSPACE_TOO_SMALL = re.compile(r"(?i)within workspace limit|insufficient workspace")
"""Messages of TensorRT about a too small `workspace_mb`."""
UNSUPPORTED = "this version does not have it"
"""Reason of a parser error whose text is only `false`."""
RTX_SETTINGS = ", for this GPU and capturable where it can be"
"""Added to the settings in the key of a TensorRT-RTX engine."""
Log = Callable[[str], None]
"""Receives one line."""


class BuildTimeoutError(NotTestedError):
    """A build was stopped at its time limit."""


@dataclass(frozen=True)
class RtxBuildOptions:
    """Optional TensorRT-RTX build settings. They are dropped one by one if a build fails."""

    this_gpu: bool = False
    """Compile kernels for the GPU of this machine only, instead of all supported ones."""
    capturable: bool = False
    """Forbid memory allocation by the running engine, so that it can be captured as a CUDA graph."""


@dataclass(frozen=True)
class Plan:
    """A serialized engine."""

    engine: bytes
    built: bool
    """True if it was built now, False if it was read from the cache."""


def engine_for(
    tensorrt: TensorRT,
    bundle: Bundle,
    target: Target,
    graph: str,
    cache: EngineCache,
    gpu: Gpu,
    config: BuildConfig,
    log: Log,
    plugins: Mapping[str, Plugin] | None = None,
    rejected: RejectedEngine | None = None,
) -> Plan:
    """Return the engine of one graph for this GPU from the cache, or build it while other processes wait.

    Args:
        tensorrt: TensorRT or TensorRT-RTX.
        bundle: the bundle.
        target: target of the bundle that contains the graph.
        graph: name of the graph.
        cache: cache of the engine.
        gpu: GPU of this machine.
        config: options of the build.
        log: receives one line with the reason if the engine is built.
        plugins: plugins by op. Their kernels are compiled only if the engine is built.
        rejected: a cached engine that TensorRT did not load, which is built again.

    Raises:
        InputError: this TensorRT cannot build the graph, or the cache cannot be written.
        NotTestedError: too little memory or time.
    """
    spec = target.graphs[graph]
    model = bundle.read(spec.file)
    plugins = plugins or {}
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
        plugins=", ".join(f"{op} {plugin.hash()}" for op, plugin in sorted(plugins.items())) or "none",
        settings=config.settings() + (RTX_SETTINGS if tensorrt.capability.rtx else ""),
    )
    timing = cache.folder / f"{_file_name(key)}.timing"
    built = False

    def build() -> bytes:
        nonlocal built
        built = True
        if not gpu.integrated:  # build_engine checks the memory that an integrated GPU shares
            check_memory(len(model), gpu.free, f"{spec.file} on {gpu.name}")
        for plugin in plugins.values():
            plugin.register(tensorrt, "sm_{}{}".format(*gpu.compute_capability))
        with progress_bar(key.label) as report:
            try:
                return build_engine(
                    tensorrt, model, spec, profiles, config, report, tuple(plugins), timing, True, modules
                )
            except BuildTimeoutError as error:
                raise NotTestedError(
                    f"{error}; to allow more, run: edge-attn optimize {shlex.quote(str(bundle.path))} --target "
                    f"{target.target} --precision {target.precision} --build --max-build-minutes "
                    f"{2 * config.max_build_minutes:g}; or build for fewer buckets"
                ) from error

    return Plan(cache.build_once(key, build, log, 4 * len(model) + 16 * MIB, rejected), built)


def _file_name(key: EngineKey) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{key.runtime}-{key.gpu}-{key.compute_capability}")


def _modules(target: Target, spec: GraphSpec) -> dict[str, str]:
    """Return the torch module of each node, as `optimize` stored it. Empty for a bundle of an older version."""
    modules: dict[str, str] = (target.settings.get("modules") or {}).get(spec.file, {})
    return modules


def build_engine(
    tensorrt: TensorRT,
    model: bytes,
    spec: GraphSpec,
    profiles: Sequence[Profile],
    config: BuildConfig,
    report: ProgressCallback,
    plugins: Sequence[str] = (),
    timing: Path | None = None,
    this_gpu: bool = False,
    modules: Mapping[str, str] | None = None,
) -> bytes:
    """Parse a graph, check it for silent faults (lint.py), and build its engine.

    Args:
        tensorrt: TensorRT or TensorRT-RTX.
        model: content of the ONNX file.
        spec: inputs and outputs of the graph.
        profiles: optimization profiles of the engine.
        config: options of the build.
        report: receives the progress.
        plugins: ops of registered plugins.
        timing: file of measured tactics, which makes the next build faster.
        this_gpu: whether the engine is for the GPU of this machine only. TensorRT-RTX otherwise builds for every GPU
            that it supports, and needs none.
        modules: torch module of each node, for error texts.

    Raises:
        InputError: TensorRT cannot parse or build the graph, or would change its meaning.
        NotTestedError: too little memory or time.
    """
    trt = tensorrt.trt
    check_memory(len(model), available_memory(), spec.file)
    tensorrt.log.drain_errors()
    builder: Builder = _builder(tensorrt)
    network: INetworkDefinition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser: OnnxParser = trt.OnnxParser(network, tensorrt.log)
    _check(tensorrt, spec, lint_plugins(parser, plugins))
    if not parser.parse(model):
        faults = [_parser_fault(parser, i, modules or {}) for i in range(parser.num_errors)]
        _check(tensorrt, spec, faults or tensorrt.log.drain_errors() or ["its parser reports no reason"])
    _check(tensorrt, spec, lint_network(tensorrt, network, spec))
    mark_attention_decomposable(tensorrt, network)
    progress = BuildProgress(report, 60 * config.max_build_minutes)
    monitor = progress_monitor(tensorrt, progress)
    for rtx_options in _rtx_build_options(tensorrt, this_gpu):
        options: IBuilderConfig = builder.create_builder_config()
        _set_options(tensorrt, options, config, rtx_options)
        for profile in profiles:
            _add_profile(builder, options, profile, spec)
        options.progress_monitor = monitor
        if tensorrt.capability.timing_cache and timing is not None:
            load_timing_cache(options, timing)
        try:
            engine = builder.build_serialized_network(network, options)
        except MemoryError:
            engine = None
            tensorrt.log.errors.append("out of memory")
        out_of_memory = any(OUT_OF_MEMORY.search(error) for error in tensorrt.log.errors)
        if engine is not None or progress.cancelled or rtx_options == RtxBuildOptions() or out_of_memory:
            break
        tensorrt.log.drain_errors()  # the next build logs the faults that remain
    _raise_if_cancelled(progress, spec, config)
    if engine is None:
        raise _build_error(tensorrt, spec, config)
    if tensorrt.capability.timing_cache and timing is not None:
        save_timing_cache(options, timing)
    return bytes(engine)


def _builder(tensorrt: TensorRT) -> Builder:
    """Create a builder. Raise NotTestedError if there is no GPU, or if its driver is too old."""
    try:
        return tensorrt.trt.Builder(tensorrt.log)
    except (TypeError, RuntimeError) as error:  # raised by the bindings for a null pointer
        reason = "; ".join(" ".join(text.split()) for text in tensorrt.log.drain_errors()) or error
        raise NotTestedError(f"{tensorrt.name} does not start here: {reason}; run: edge-attn doctor") from error


def _rtx_build_options(tensorrt: TensorRT, this_gpu: bool) -> list[RtxBuildOptions]:
    """Return the options to try one after the other, until a build succeeds."""
    if not tensorrt.capability.rtx:
        return [RtxBuildOptions()]
    options = [RtxBuildOptions(capturable=True), RtxBuildOptions()]
    return [RtxBuildOptions(this_gpu=True, capturable=True), *options] if this_gpu else options


def _set_options(
    tensorrt: TensorRT, options: IBuilderConfig, config: BuildConfig, rtx_options: RtxBuildOptions
) -> None:
    trt = tensorrt.trt
    options.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mb * MIB)
    options.builder_optimization_level = config.optimization_level
    if not config.tf32:  # TensorRT's default is TF32
        options.clear_flag(trt.BuilderFlag.TF32)
    if tensorrt.capability.rtx and rtx_options.capturable:
        options.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if tensorrt.capability.rtx and rtx_options.this_gpu:
        options.num_compute_capabilities = 1
        options.set_compute_capability(trt.ComputeCapability.CURRENT, 0)


def _check(tensorrt: TensorRT, spec: GraphSpec, faults: Sequence[str]) -> None:
    """Raise InputError with the first fault, if there is one."""
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(f"{spec.file} cannot be built with {tensorrt.name}: {faults[0]}{more}")


def _parser_fault(parser: OnnxParser, index: int, modules: Mapping[str, str]) -> str:
    """Return node, torch module, enclosing function calls and reason of a parser error.

    The parser names a node without a name by its output.
    """
    error: ParserError = parser.get_error(index)
    name, calls = error.node_name(), error.local_function_stack()
    fault = f"{error.node_operator()} {name!r}".lstrip() + _module_suffix(name, modules)
    if calls:
        fault += f", inside {' > '.join(calls)}" + _module_suffix(calls[0].rpartition(" (")[0], modules)
    reason = " ".join(error.desc().split())
    return f"{fault}: {UNSUPPORTED if reason in ('', 'false') else reason}"


def _module_suffix(node: str, modules: Mapping[str, str]) -> str:
    return f" of {modules[node]}" if node in modules else ""


def _add_profile(builder: Builder, options: IBuilderConfig, profile: Profile, spec: GraphSpec) -> None:
    optimization_profile: IOptimizationProfile = builder.create_optimization_profile()
    try:
        for name, (min_shape, opt_shape, max_shape) in profile.shapes(spec).items():
            optimization_profile.set_shape(name, min_shape, opt_shape, max_shape)
    except (TypeError, RuntimeError) as error:  # raised by the bindings for invalid sizes
        reason = str(error).partition("\n")[0]
        raise InputError(f"{spec.file}: TensorRT rejects the profile {profile}: {reason}") from error
    if options.add_optimization_profile(optimization_profile) < 0:
        raise InputError(f"{spec.file}: TensorRT rejects the profile {profile}")


def _raise_if_cancelled(progress: BuildProgress, spec: GraphSpec, config: BuildConfig) -> None:
    if progress.cancelled == "keyboard":
        raise KeyboardInterrupt
    if progress.cancelled == "time":
        raise BuildTimeoutError(
            f"{spec.file}: the build took longer than {config.max_build_minutes:g} minutes and was stopped"
        )
    if progress.cancelled:
        raise RuntimeError(f"{spec.file}: the report of the build's progress failed: {progress.cancelled}")


def _build_error(tensorrt: TensorRT, spec: GraphSpec, config: BuildConfig) -> Exception:
    errors = [" ".join(error.split()) for error in tensorrt.log.drain_errors()]
    if any(OUT_OF_MEMORY.search(error) for error in errors):
        return NotTestedError(
            f"{spec.file}: memory ran out while the engine was built; set workspace_mb to less than "
            f"{config.workspace_mb}, build for fewer or smaller buckets, or end other programs"
        )
    if any(WORKSPACE_TOO_SMALL.search(error) for error in errors):
        return InputError(
            f"{spec.file} cannot be built with {tensorrt.name} in {config.workspace_mb} MB of workspace; increase "
            f"workspace_mb, in the file of --profiles"
        )
    reason = errors[-1] if errors else "TensorRT logs no reason"
    return InputError(f"{spec.file} cannot be built with {tensorrt.name}: {reason}")


def available_memory() -> int:
    """Return the memory that new programs may use, in bytes, within the limit of a container.

    The GPU of a Jetson uses the same memory.
    """
    memory = system_memory()
    return sys.maxsize if memory is None else memory.available


def check_memory(model_bytes: int, available: int, label: str) -> None:
    """Check that there is as much memory as parsing and building a graph needed in measurements.

    Raises:
        NotTestedError: there is too little memory.
    """
    needed = 256 * MIB + 4 * model_bytes
    if available < needed:
        raise NotTestedError(
            f"{label}: building its engine needs about {needed // MIB} MB of memory, {available // MIB} MB are free; "
            f"end other programs (on a Jetson, the desktop first)"
        )
