"""`edge-attn verify`: compare the deployed model with the reference."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.checkpoint import load_config
from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.errors import BundleError, InputError, TooLargeError, UsageError
from edge_attn.parity.results import LevelResult
from edge_attn.parity.task import GoldenData, Task
from edge_attn.parity.tolerances import LEVELS, bounds
from edge_attn.progress import stage, stages
from edge_attn.registry import RUNTIMES, TASKS, resolve
from edge_attn.runtimes.base import open_runtime
from edge_attn.runtimes.verification.report import Report
from edge_attn.spec import GraphSpec, Runtime, TensorSpec
from edge_attn.system_memory import bounded_memory
from edge_attn.text.corpus import read_sentences

CONVERSIONS = {"fp16": b"\n\x02to\x18\n", "int8": b"DequantizeLinear"}
"""Bytes of a node in ONNX that a graph of each precision contains: a Cast to float16, the name of an op."""


def verify(
    bundle: Path | Bundle,
    runtime: str = "ort-cpu",
    levels: Sequence[str] = (),
    overrides: Mapping[str, float] | None = None,
    reference: Path | None = None,
    sentences: Path | None = None,
    options: RuntimeOptions = DEFAULT,
) -> Report:
    """Compare `bundle` on `runtime` with its golden data, or with the live torch model of a checkpoint.

    Args:
        bundle: folder or zip, or an opened bundle, which need not be written yet.
        runtime: name of the runtime.
        levels: levels to run; by default all that the task has.
        overrides: bounds to loosen for this run, by name.
        reference: checkpoint of the live model.
        sentences: file of inputs for the live model; by default those of the golden data.
        options: options of the runtime.

    Raises:
        BundleError, UsageError, NotTestedError: nothing could be compared.
    """
    started = time.monotonic()
    if reference is None and sentences is not None:
        raise UsageError("`sentences` needs `reference`: golden data exists for the bundle's own sentences only")
    if reference is not None:
        load_config(reference)  # before torch is imported
    lines = None if sentences is None else read_sentences(sentences)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    with bounded_memory() if runtime == "ort-cpu" else contextlib.nullcontext():
        report = _verify(opened, runtime, levels, overrides, reference, lines, options)
    return replace(report, seconds=time.monotonic() - started)


def _verify(
    opened: Bundle,
    runtime: str,
    levels: Sequence[str],
    overrides: Mapping[str, float] | None,
    reference: Path | None,
    lines: Sequence[str] | None,
    options: RuntimeOptions,
) -> Report:
    task = task_of(opened)
    running = open_runtime(opened, runtime, options)
    check_reduced(opened, running)
    if reference is None:
        golden = task.load_golden(opened)
        return check(opened, running, golden, levels, overrides or {})
    inputs = task.golden_inputs(task.load_golden(opened)) if lines is None else lines
    live = resolve("runtime", RUNTIMES, "torch")(reference, opened)
    _check_same_graphs(opened, live.references.deployed.graphs, reference)
    with_live_text = Bundle(opened.path, opened.manifest, live.text.files())
    with stages("verify", 1):
        stage(f"run the reference, {len(inputs)} sentences")
        golden = task.record(with_live_text, live.references, inputs)
    return check(opened, running, golden, levels, overrides or {}, str(reference))


def _check_same_graphs(bundle: Bundle, graphs: Mapping[str, GraphSpec], reference: Path) -> None:
    """Check that a checkpoint has the graphs of the bundle, before minutes are spent on recording its results.

    Raises:
        InputError: a graph, or an input or output of one, is missing or has another shape or range.
    """
    for name in sorted(graphs.keys() | bundle.manifest.graphs.keys()):
        actual, expected = (
            {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)} if spec is not None else {}
            for spec in (graphs.get(name), bundle.manifest.graphs.get(name))
        )
        for tensor in sorted(actual.keys() | expected.keys()):
            if actual.get(tensor) != expected.get(tensor):
                raise InputError(
                    f"{reference} is of another model than {bundle.path}: its {name} has "
                    f"{_show(actual.get(tensor), tensor)}, that of the bundle {_show(expected.get(tensor), tensor)}"
                )


def _show(tensor: TensorSpec | None, name: str) -> str:
    if tensor is None:
        return f"no {name}"
    return f"{tensor}{f' of {tensor.values[0]} to {tensor.values[1]}' if tensor.values else ''}"


def check_reduced(bundle: Bundle, runtime: Runtime) -> None:
    """Check that graphs which are called fp16 or int8 are of that precision, so that its bounds apply.

    Raises:
        BundleError: no graph converts a tensor to that precision.
    """
    mark = CONVERSIONS.get(runtime.precision)
    if mark and not any(mark in bundle.read(spec.file) for spec in runtime.graphs.values()):
        raise BundleError(
            f"{bundle.path}: the manifest calls the graphs {runtime.precision}, and none of them computes in it; "
            "run optimize, or export the bundle again"
        )


def task_of(bundle: Bundle) -> Task:
    """Return the task of a bundle."""
    task: Task = resolve("task", TASKS, bundle.manifest.task)
    return task


def check(
    bundle: Bundle,
    runtime: Runtime,
    golden: GoldenData,
    levels: Sequence[str] = (),
    overrides: Mapping[str, float] | None = None,
    against: str = "golden data",
) -> Report:
    """Compare `runtime` with `golden` at the requested levels, by default all that the task has.

    A level that needs more than the runtime's engines were built for is not tested, and the others run.

    Args:
        bundle: the opened bundle.
        runtime: the bundle on the runtime to verify.
        golden: results of the reference, in the format of the bundle's task.
        levels: levels to run.
        overrides: bounds to loosen for this run, by name.
        against: origin of the golden data, for the report.

    Raises:
        UsageError: an unknown level or bound.
        InputError: the golden data was recorded from another model.
    """
    started = time.monotonic()
    task, manifest = task_of(bundle), bundle.manifest
    available = [name for names in task.levels for name in names]
    for name in levels:
        if name not in LEVELS:
            raise UsageError(f"unknown level {name!r}; known: {', '.join(available)}")
    stricter = manifest.tolerances if runtime.precision == manifest.precision else {}
    limits = bounds(runtime.precision, stricter, overrides or {})
    task.check_golden(runtime, golden, against)
    requested = tuple(levels) or tuple(available)
    results = {name: LevelResult(name) for name in LEVELS if name in available or name in requested}
    for name in requested:
        if name not in available:
            results[name] = LevelResult(name, "not tested", f"verify runs {', '.join(available)}")
    groups = {names: run for names, run in task.levels.items() if any(name in requested for name in names)}
    # NaN of a broken runtime is a measurement, not a warning
    with np.errstate(all="ignore"), stages("verify", len(groups)):
        for names, compare in groups.items():
            stage(f"{' and '.join(names)}, {len(golden)} sentences")
            level_started = time.monotonic()
            levels_run = _run(names, compare, bundle, runtime, golden, limits)
            seconds = (time.monotonic() - level_started) / len(levels_run)
            results.update(
                {level.name: replace(level, seconds=seconds) for level in levels_run if level.name in requested}
            )
    return Report(
        bundle=str(bundle.path),
        runtime=runtime.name,
        provider=runtime.provider,
        precision=runtime.precision,
        against=against,
        sentences=len(golden),
        overrides=dict(overrides or {}),
        levels=list(results.values()),
        seconds=time.monotonic() - started,
        coverage=task.coverage(runtime, golden),
        inputs=tuple(task.golden_inputs(golden)),
    )


def _run(names: Sequence[str], compare: Callable[..., Sequence[LevelResult]], *arguments: Any) -> Sequence[LevelResult]:
    try:
        return compare(*arguments)
    except TooLargeError as error:
        return [LevelResult(name, "not tested", str(error)) for name in names]
