"""`edge-attn optimize`: the graphs that one target runs best, made from the portable ones, verified, then written.

They are verified with ONNX Runtime on the CPU, which computes fp16 in places as fp32 and rounds: it shows that a graph
says the same, not how fast it is, and not what an engine does. `--build` shows that, on the machine that has one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import FORMAT, FileEntry, Manifest, Target
from edge_attn.bundle.writer import check_output, update_bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.config.validation import from_mapping, read_toml
from edge_attn.errors import BundleError, ConfigError, InputError, NotTestedError, UsageError
from edge_attn.parity import golden
from edge_attn.parity.golden import Golden
from edge_attn.registry import TARGETS, resolve
from edge_attn.runtimes.base import open_runtime
from edge_attn.runtimes.optimize import trt_operators as requirements
from edge_attn.runtimes.optimize.build_target import Say, Wanted, calibration, make
from edge_attn.runtimes.optimize.targets import Recipe
from edge_attn.runtimes.trt.autotune import plugins_of
from edge_attn.runtimes.trt.builder import BuildConfig
from edge_attn.runtimes.trt.plugins import plugins_for
from edge_attn.runtimes.trt.runtime import open_engines
from edge_attn.runtimes.verification.verify import check
from edge_attn.runtimes.versions import parse_version
from edge_attn.text import corpus


@dataclasses.dataclass(frozen=True)
class Given:
    """The options that were given; the others are None, or empty."""

    min_version: str | None = None
    calibration: Path | None = None
    profiles: Path | None = None
    max_build_minutes: float | None = None
    plugins: tuple[str, ...] = ()


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
    say: Say = print,
) -> int:
    """Makes `bundle`'s graphs for `target` and writes them into it; with `build`, builds and verifies them here too.

    With `build` and without `force`, graphs that the bundle holds already are built as they are, with the profiles and
    minutes that are given, which the bundle then keeps. Where neither is given they stay as they were, with `force`
    too; a file of profiles replaces all that there was.

    Gives the exit code: 0; with `build`, 1 where parity does not hold on the engine, 3 where a level of verify could
    not run on it.

    Raises:
        UsageError: no such target, precision or plugin, or an option that it has no use for.
        InputError: the bundle holds them already and neither `force` nor `build` is given; a graph that the target
            cannot read; a bundle that cannot be written.
        ParityError: what was made does not say what the reference says; nothing is written.
        NotTestedError: with `build`, there is nothing here to build with; the graphs are written all the same.
    """
    given = Given(min_version, calibration, profiles, max_build_minutes, tuple(plugins))
    recipe: Recipe = resolve("target", TARGETS, target)
    _refuse(target, precision, recipe, given)
    table = read_toml(BuildConfig, profiles) if profiles else None
    wanted = Wanted(target, precision, recipe, _oldest(given, recipe), tuple(plugins_for(target, plugins)), calibration)
    opened = Bundle.open(bundle)
    place = Path(os.path.realpath(bundle))  # before `.` is replaced, after which nothing leads there
    options = RuntimeOptions(threads=threads, precision=precision, cache_dir=cache_dir)
    said = golden.load(opened.read)
    held = opened.manifest.targets.get(wanted.name)
    if held and not force:
        _refuse_held(bundle, held, wanted, given, build)
    wanted = dataclasses.replace(wanted, build=_config(bundle, held, table, max_build_minutes))
    if recipe.engines:
        _foretell(wanted.build or BuildConfig(), said, say)
    if held and not force:
        say(f"{bundle} holds {wanted.name} already: its graphs are built as they are; give --force to make them again")
        if wanted.build and wanted.build != _held_config(bundle, held):
            config = dataclasses.asdict(wanted.build)
            update_bundle(place, functools.partial(_with_setting, opened, wanted.name, "build", config))
        return _build(place, wanted, options, said, say)
    check_output(bundle, True, opened.size())
    made, files = make(opened, wanted, said, options, say)
    inside = place.is_dir() and _is_where_we_are(place)
    update_bundle(place, functools.partial(_with, opened, made, files))
    if inside:
        say(f"the folder that you are in was replaced; run: cd {shlex.quote(str(place))}")
    say(
        f"{bundle}: {made.name}, {sum(map(len, files.values())) / 1e6:.1f} MB, "
        f"{', '.join(f'{level} {status}' for level, status in made.verification['levels'].items())} "
        f"on {made.verification['provider']}{'; the engine is not tested' if recipe.engines else ''}"
    )
    return _build(place, wanted, options, said, say) if build else 0


# ---- what is refused


def _refuse(target: str, precision: str, recipe: Recipe, given: Given) -> None:
    if precision not in recipe.precisions:
        raise UsageError(f"the target {target} has {', '.join(recipe.precisions)}, got precision {precision!r}")
    if given.calibration and precision != "int8":
        raise UsageError(f"--calibration is for int8, got precision {precision!r}")
    if not recipe.engines:
        options = {
            "--min-version": given.min_version,
            "--profiles": given.profiles,
            "--max-build-minutes": given.max_build_minutes,
            "--plugin": given.plugins or None,
        }
        for option, value in options.items():
            if value is not None:
                raise UsageError(f"{option} is for engines, and the target {target} has none")
    minutes = given.max_build_minutes
    if minutes is not None and not 0 < minutes < math.inf:  # which nan is not
        raise UsageError(f"--max-build-minutes must be a number more than 0, got {minutes}")


def _oldest(given: Given, recipe: Recipe) -> requirements.Version | None:
    """The oldest version that must read the graphs."""
    if given.min_version is None:
        return recipe.oldest
    asked, newest = requirements.version(given.min_version), max(requirements.OPSETS)[0]
    if asked[0] > newest:  # what it reads is not known here
        raise UsageError(f"the newest TensorRT that is known is {newest}.x, got --min-version {given.min_version}")
    return asked


def _refuse_held(bundle: Path, held: Target, wanted: Wanted, given: Given, build: bool) -> None:
    """Refuses to make again what the bundle holds, and to build it as if it were made in another way."""
    if not build:
        raise InputError(f"{bundle} holds {wanted.name} already; give --force to make it again")
    lines = corpus.read_sentences(given.calibration) if given.calibration else ()
    digest = calibration(lines, given.calibration)["sha256"]
    oldest = parse_version(str(_noted(held, "min_version")))
    asked: dict[str, tuple[object, Any, Any]] = {
        "--min-version": (given.min_version, _with_zeros(oldest), _with_zeros(wanted.oldest or ())),
        "--calibration": (given.calibration, _noted(held, "calibration", "sha256"), digest),
        "--plugin": (given.plugins, _noted(held, "plugins", "ops"), list(wanted.plugins)),
    }
    for option, (value, before, now) in asked.items():
        if value and before != now:
            raise UsageError(
                f"{bundle} holds {wanted.name} already, made with another {option} or none; leave it out to build what "
                f"is there, or give --force to make it again"
            )


def _with_zeros(version: requirements.Version) -> requirements.Version:
    """All four numbers: 10.3 is 10.3.0.0."""
    return (*version, 0, 0, 0, 0)[:4]


def _noted(held: Target, *keys: str) -> Any:
    """What a target's settings say under these keys, one inside the other; None if they do not."""
    found: Any = held.settings
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


# ---- how engines are built


def _config(bundle: Path, held: Target | None, table: BuildConfig | None, minutes: float | None) -> BuildConfig | None:
    """How engines are built, where that was asked for: now, or when what the bundle holds was made."""
    config = table or (_held_config(bundle, held) if held else None)
    return config if minutes is None else dataclasses.replace(config or BuildConfig(), max_build_minutes=minutes)


def _held_config(bundle: Path, held: Target) -> BuildConfig | None:
    stored, where = held.settings.get("build"), f"{bundle}: targets: {held.name}: build"
    if stored is None:
        return None
    if not isinstance(stored, dict):
        raise ConfigError(f"{where} must be a table, got {stored!r}")
    return from_mapping(BuildConfig, stored, where)


def _foretell(config: BuildConfig, said: Golden, say: Say) -> None:
    """Says what verify will not be able to run on engines that are built in this way."""
    if config.buckets.beam < said.search.beam:
        say(
            f"engines for a beam of up to {config.buckets.beam} cannot run the golden beam search, whose beam is "
            f"{said.search.beam}: L3 will not be tested on them (beam in the table buckets of --profiles)"
        )


# ---- what is written


def _with(opened: Bundle, made: Target, files: Mapping[str, bytes], now: Bundle) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the files of the bundle as it is `now`, for a target may have been added, with `made` in it."""
    if _portable(now.manifest) != _portable(opened.manifest):
        raise BundleError(f"{opened.path} was replaced while it was optimized; run the command again")
    kept = {name: data for name, data in now.files().items() if not name.startswith(f"targets/{made.name}/")}
    targets = {**now.manifest.targets, made.name: made}
    return dataclasses.replace(now.manifest, format=FORMAT, targets=targets), {**kept, **files}


def _is_where_we_are(folder: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # nowhere: that folder was deleted
        return False


def _portable(manifest: Manifest) -> dict[str, FileEntry]:
    """The files that targets are made from."""
    return {name: entry for name, entry in manifest.files.items() if not name.startswith("targets/")}


def _with_setting(opened: Bundle, name: str, key: str, value: object, now: Bundle) -> tuple[Manifest, dict[str, bytes]]:
    """The bundle as it is `now`, with another value for one setting of the target `name`."""
    held = now.manifest.targets.get(name)
    if held is None or _files_of(now.manifest, name) != _files_of(opened.manifest, name):
        raise BundleError(f"{opened.path} was replaced while it was optimized; run the command again")
    targets = {**now.manifest.targets, name: dataclasses.replace(held, settings={**held.settings, key: value})}
    return dataclasses.replace(now.manifest, targets=targets), now.files()


def _files_of(manifest: Manifest, target: str) -> dict[str, FileEntry]:
    return {name: entry for name, entry in manifest.files.items() if name.startswith(f"targets/{target}/")}


def _build(bundle: Path, wanted: Wanted, options: RuntimeOptions, said: Golden, say: Say) -> int:
    """Opens the runtime, which builds what it lacks, and verifies on it; gives the report's exit code."""
    opened = Bundle.open(bundle)
    try:
        if wanted.recipe.engines and plugins_of(opened.manifest.targets[wanted.name])[1]:
            check_output(bundle, True, opened.size())
            measured = open_engines(opened, options, say).measure()
            plugins = {**opened.manifest.targets[wanted.name].settings["plugins"], "measured": measured}
            update_bundle(bundle, functools.partial(_with_setting, opened, wanted.name, "plugins", plugins))
            opened = Bundle.open(bundle)
        runtime = open_runtime(opened, wanted.target, options)
    except NotTestedError as error:
        raise NotTestedError(
            f"{bundle} holds {wanted.name}, but it was not built or run here: {error}; afterwards: "
            f"edge-attn verify {shlex.quote(str(bundle))} --runtime {wanted.target} --precision {wanted.precision}"
        ) from error
    try:
        report = check(opened, runtime, said)
    finally:
        runtime.close()
    say(str(report))
    return report.exit_code
