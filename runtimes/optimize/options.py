"""Options of `edge-attn optimize`: what applies to a target, and what may change for graphs that already exist."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from edge_attn.bundle.manifest import Target
from edge_attn.config.validation import from_mapping
from edge_attn.errors import InputError, UsageError
from edge_attn.runtimes.optimize.build_target import TargetRequest, describe_calibration
from edge_attn.runtimes.optimize.targets import Recipe
from edge_attn.runtimes.optimize.trt_operators import OPSETS, Version, version
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.text import corpus
from edge_attn.versions import parse_version


def check_options(
    request: TargetRequest, min_version: str | None, profiles: Path | None, max_build_minutes: float | None
) -> None:
    """Refuse options that do not apply to a target.

    Args:
        request: target of this call.
        min_version: --min-version.
        profiles: --profiles.
        max_build_minutes: --max-build-minutes.

    Raises:
        UsageError: the target does not have this precision, or an option does not apply to it.
    """
    target, precision, recipe = request.target, request.precision, request.recipe
    if precision not in recipe.precisions:
        raise UsageError(f"the target {target} has {', '.join(recipe.precisions)}, got precision {precision!r}")
    if request.calibration and precision != "int8":
        raise UsageError(f"--calibration is for int8, got precision {precision!r}")
    engine_options = {
        "--min-version": min_version,
        "--profiles": profiles,
        "--max-build-minutes": max_build_minutes,
        "--plugin": request.plugins or None,
    }
    for option, value in engine_options.items():
        if value is not None and not recipe.engines:
            raise UsageError(f"{option} is for engines, and the target {target} has none")
    if max_build_minutes is not None and not 0 < max_build_minutes < math.inf:  # NaN fails this too
        raise UsageError(f"--max-build-minutes must be a number more than 0, got {max_build_minutes}")


def oldest_version(min_version: str | None, recipe: Recipe) -> Version | None:
    """Return the oldest version that must read the graphs.

    Raises:
        UsageError: it is too old, or newer than every known one.
    """
    if min_version is None:
        return recipe.oldest
    requested, newest = version(min_version), max(OPSETS)[0]
    if requested[0] > newest:  # the ops that it reads are unknown
        raise UsageError(f"the newest TensorRT that is known is {newest}.x, got --min-version {min_version}")
    return requested


def refuse_existing(bundle: Path, stored: Target, request: TargetRequest, min_version: str | None, build: bool) -> None:
    """Refuse to replace a target, and to build it as if it had been built with other options.

    Args:
        bundle: path of the bundle, for errors.
        stored: target of the bundle.
        request: target of this call.
        min_version: --min-version.
        build: True with --build.

    Raises:
        InputError: the bundle contains the target, and `build` is not set.
        UsageError: it was built with other options.
    """
    if not build:
        raise InputError(f"{bundle} already contains {request.name}; give --force to build it again")
    lines = corpus.read_sentences(request.calibration) if request.calibration else ()
    digest = describe_calibration(lines, request.calibration)["sha256"]
    oldest = parse_version(str(_setting(stored, "min_version")))
    comparisons: dict[str, tuple[object, Any, Any]] = {
        "--min-version": (min_version, _four_numbers(oldest), _four_numbers(request.oldest or ())),
        "--calibration": (request.calibration, _setting(stored, "calibration", "sha256"), digest),
        "--plugin": (request.plugins, _setting(stored, "plugins", "ops"), list(request.plugins)),
    }
    for option, (value, before, now) in comparisons.items():
        if value and before != now:
            raise UsageError(
                f"{bundle} already contains {request.name}, built with another {option} or none; leave it out to build "
                f"the graphs as they are, or give --force to replace them"
            )


def _four_numbers(numbers: Version) -> Version:
    """Return 10.3 as 10.3.0.0."""
    return (*numbers, 0, 0, 0, 0)[:4]


def _setting(stored: Target, *keys: str) -> Any:
    """Return the value under nested keys of a target's settings, or None."""
    value: Any = stored.settings
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def build_config(
    bundle: Path, stored: Target | None, table: BuildConfig | None, minutes: float | None
) -> BuildConfig | None:
    """Return the configuration of this call, else the stored one, else None.

    Args:
        bundle: path of the bundle, for errors.
        stored: target of the bundle.
        table: content of --profiles.
        minutes: --max-build-minutes.
    """
    config = table or (stored_config(bundle, stored) if stored else None)
    return config if minutes is None else dataclasses.replace(config or BuildConfig(), max_build_minutes=minutes)


def stored_config(bundle: Path, stored: Target) -> BuildConfig | None:
    """Return the configuration that a target stores, or None.

    Raises:
        ConfigError: the stored configuration is damaged.
    """
    config = stored.settings.get("build")
    return None if config is None else from_mapping(BuildConfig, config, f"{bundle}: targets: {stored.name}: build")
