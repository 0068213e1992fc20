"""`edge-attn optimize`: the fastest graphs for one target, built from the portable ones, verified, then written.

They are verified with ONNX Runtime on the CPU, which computes parts of fp16 in fp32 and rounds. That proves the results
of a graph, not its speed, and not those of an engine: `--build` verifies the engine, on the machine that runs it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import TASK_NAMES_FORMAT, FileEntry, Manifest, Target
from edge_attn.bundle.writer import check_output, update_bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.config.validation import read_toml
from edge_attn.errors import BundleError, NotTestedError
from edge_attn.parity import reader
from edge_attn.parity.golden import Golden
from edge_attn.registry import TARGETS, resolve
from edge_attn.runtimes.base import open_runtime
from edge_attn.runtimes.optimize.build_target import Log, TargetRequest
from edge_attn.runtimes.optimize.build_target import build as build_target
from edge_attn.runtimes.optimize.options import (
    build_config,
    check_options,
    oldest_version,
    refuse_existing,
    stored_config,
)
from edge_attn.runtimes.optimize.targets import Recipe
from edge_attn.runtimes.trt.autotune import plugins_of
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.plugins import plugins_for
from edge_attn.runtimes.trt.runtime import open_engines
from edge_attn.runtimes.verification.verify import check
from edge_attn.text.corpus import check_text_file


def optimize(
    bundle: Path,
    target: str,
    precision: str = "fp32",
    min_version: str | None = None,
    calibration: Path | None = None,
    profiles: Path | None = None,
    max_build_minutes: float | None = None,
    plugins: Sequence[str] = (),
    build: bool = False,
    force: bool = False,
    threads: int | None = None,
    cache_dir: Path | None = None,
    log: Log = print,
) -> int:
    """Build a bundle's graphs for one target, verify them and write them into the bundle.

    Args:
        bundle: the bundle, which is replaced whole or stays as it was.
        target: a name of TARGETS.
        precision: fp32, fp16 or int8, of those that the target has.
        min_version: oldest TensorRT that must read the graphs, as "10.3".
        calibration: text file of source sentences for the scales of int8; by default the golden sentences.
        profiles: TOML file of BuildConfig. It replaces the stored configuration, which else stays, with `force` too.
        max_build_minutes: time limit of an engine build; stored with the configuration.
        plugins: ops for which a variant with a plugin is added.
        build: build the engines here, measure the plugins if there are any, and verify. Without `force`, graphs that
            the bundle already contains are built as they are.
        force: replace graphs that the bundle already contains.
        threads: CPU threads; None lets the runtime choose.
        cache_dir: engine cache folder; None for the user's cache folder.
        log: takes one line for the user.

    Returns:
        The exit code: 0; with `build`, 1 where parity does not hold on the engine, 3 where a level of verify could not
        run on it.

    Raises:
        UsageError: there is no such target, precision or plugin, or an option does not apply to it.
        InputError: the bundle already contains the graphs and neither `force` nor `build` is set; the target cannot
            read a graph; the bundle cannot be written.
        ParityError: the graphs differ from the reference; nothing is written.
        NotTestedError: with `build`, there is nothing here to build with; the graphs are written all the same.
    """
    recipe: Recipe = resolve("target", TARGETS, target)
    request = TargetRequest(target, precision, recipe, plugins=tuple(plugins), calibration=calibration)
    check_options(request, min_version, profiles, max_build_minutes)
    if calibration is not None:
        check_text_file(calibration)
    table = read_toml(BuildConfig, profiles) if profiles else None
    plugin_ops, oldest = tuple(plugins_for(target, plugins)), oldest_version(min_version, recipe)
    request = dataclasses.replace(request, oldest=oldest, plugins=plugin_ops)
    opened = Bundle.open(bundle)
    path = Path(os.path.realpath(bundle))  # before `.` is replaced, after which the relative path leads nowhere
    options = RuntimeOptions(threads=threads, precision=precision, cache_dir=cache_dir)
    golden = reader.load(opened)
    stored = opened.manifest.targets.get(request.name)
    if stored and not force:
        refuse_existing(bundle, stored, request, min_version, build)
    request = dataclasses.replace(request, build=build_config(bundle, stored, table, max_build_minutes))
    if recipe.engines:
        _warn_untestable_levels(request.build or BuildConfig(), golden, log)
    if stored and not force:
        log(f"{bundle} already contains {request.name}: its graphs are built as they are; --force builds new ones")
        if request.build and request.build != stored_config(bundle, stored):
            config = dataclasses.asdict(request.build)
            update_bundle(path, functools.partial(_with_setting, opened, request.name, "build", config))
        return _build_engines(path, request, options, golden, log)
    check_output(bundle, True, opened.size())
    new_target, files = build_target(opened, request, golden, options, log)
    inside = path.is_dir() and _cwd_inside(path)
    update_bundle(path, functools.partial(_with_target, opened, new_target, files))
    if inside:
        log(f"the current folder was replaced; run: cd {shlex.quote(str(path))}")
    log(
        f"{bundle}: {new_target.name}, {sum(map(len, files.values())) / 1e6:.1f} MB, "
        f"{', '.join(f'{level} {status}' for level, status in new_target.verification['levels'].items())} "
        f"on {new_target.verification['provider']}{'; the engine is not tested' if recipe.engines else ''}"
    )
    return _build_engines(path, request, options, golden, log) if build else 0


def _warn_untestable_levels(config: BuildConfig, golden: Golden, log: Log) -> None:
    """Name the levels of verify that cannot run on engines of this configuration."""
    if config.buckets.beam < golden.search.beam:
        log(
            f"engines for a beam of up to {config.buckets.beam} cannot run the golden beam search, whose beam is "
            f"{golden.search.beam}: L3 will not be tested on them (beam in the table buckets of --profiles)"
        )


# ---- what is written


def _with_target(
    opened: Bundle, target: Target, files: Mapping[str, bytes], now: Bundle
) -> tuple[Manifest, dict[str, bytes]]:
    """Return manifest and files of the bundle as it is `now`, with `target`; it may have another new target too.

    Args:
        opened: the bundle from which the target was built.
        target: the new target.
        files: its files.
        now: the bundle as it is on the disk.

    Raises:
        BundleError: the graphs from which the target was built were replaced meanwhile.
    """
    if _portable(now.manifest) != _portable(opened.manifest):
        raise BundleError(f"{opened.path} was replaced while it was optimized; run the command again")
    other = {name: data for name, data in now.files().items() if not name.startswith(f"targets/{target.name}/")}
    targets = {**now.manifest.targets, target.name: target}
    written = max(now.manifest.format, TASK_NAMES_FORMAT)  # golden data stays as complete as it was
    return dataclasses.replace(now.manifest, format=written, targets=targets), {**other, **files}


def _cwd_inside(folder: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # the current folder was deleted
        return False


def _portable(manifest: Manifest) -> dict[str, FileEntry]:
    """Return the files from which targets are built."""
    return {name: entry for name, entry in manifest.files.items() if not name.startswith("targets/")}


def _with_setting(opened: Bundle, name: str, key: str, value: object, now: Bundle) -> tuple[Manifest, dict[str, bytes]]:
    """Return manifest and files of the bundle as it is `now`, with one setting of a target replaced.

    Args:
        opened: the bundle to which the setting belongs.
        name: name of the target.
        key: key of the setting.
        value: its value.
        now: the bundle as it is on the disk.

    Raises:
        BundleError: the target was replaced meanwhile.
    """
    stored = now.manifest.targets.get(name)
    if stored is None or _files_of(now.manifest, name) != _files_of(opened.manifest, name):
        raise BundleError(f"{opened.path} was replaced while it was optimized; run the command again")
    targets = {**now.manifest.targets, name: dataclasses.replace(stored, settings={**stored.settings, key: value})}
    return dataclasses.replace(now.manifest, targets=targets), now.files()


def _files_of(manifest: Manifest, target: str) -> dict[str, FileEntry]:
    return {name: entry for name, entry in manifest.files.items() if name.startswith(f"targets/{target}/")}


# ---- engines


def _build_engines(bundle: Path, request: TargetRequest, options: RuntimeOptions, golden: Golden, log: Log) -> int:
    """Measure the plugins, build the engines that the cache lacks, verify them, and return the exit code.

    Args:
        bundle: path of the bundle.
        request: target of the bundle.
        options: options of the runtime.
        golden: golden data of the bundle.
        log: takes one line for the user.

    Raises:
        InputError: the times of the engines cannot be written into the bundle.
        NotTestedError: there is nothing here to build or run the engines with.
    """
    opened = Bundle.open(bundle)
    target = opened.manifest.targets[request.name]
    try:
        if request.recipe.engines and plugins_of(target)[1]:
            check_output(bundle, True, opened.size())
            plugins = {**target.settings["plugins"], "measured": open_engines(opened, options, log).measure()}
            update_bundle(bundle, functools.partial(_with_setting, opened, request.name, "plugins", plugins))
            opened = Bundle.open(bundle)
        runtime = open_runtime(opened, request.target, options)
    except NotTestedError as error:
        raise NotTestedError(
            f"{request.name} is written, but it was not built or run here: {error}; afterwards: "
            f"edge-attn verify {shlex.quote(str(bundle))} --runtime {request.target} --precision {request.precision}"
        ) from error
    try:
        report = check(opened, runtime, golden)
    finally:
        runtime.close()
    log(str(report))
    return report.exit_code
