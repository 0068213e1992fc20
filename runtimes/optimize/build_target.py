"""Build the graphs of one target: converted and verified by the golden data, with and without the requested plugins.

No graph of a target calls a plugin. Each graph that calls an op for which a plugin was requested gets a variant that
calls it, and the device measures which of the two is faster (runtimes/trt/autotune.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import InputError, ParityError
from edge_attn.ops import DOMAIN
from edge_attn.parity.golden import Golden
from edge_attn.progress import stage, stages
from edge_attn.runtimes.onnx_graph import load, module_paths, nodes
from edge_attn.runtimes.optimize.calibration import Models, log_probs, with_graphs
from edge_attn.runtimes.optimize.inline import without_bodies
from edge_attn.runtimes.optimize.mixed_precision import PrecisionPlan, plan_precision
from edge_attn.runtimes.optimize.targets import Recipe, inlined
from edge_attn.runtimes.optimize.trt_operators import WITH_PLUGINS, Version, format_version
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.verification.report import Report
from edge_attn.runtimes.verification.verify import check
from edge_attn.spec import GraphSpec
from edge_attn.text import corpus

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class TargetRequest:
    """Target to build."""

    target: str
    precision: str
    recipe: Recipe
    oldest: Version | None = None
    """Oldest version that must read the graphs; variants with plugins need at least WITH_PLUGINS."""
    plugins: tuple[str, ...] = ()
    """Ops for which a plugin was requested."""
    calibration: Path | None = None
    """File of calibration lines; None for the golden sentences."""
    build: BuildConfig | None = None
    """Configuration of the engines; None for the default."""

    @property
    def name(self) -> str:
        return f"{self.target}-{self.precision}"


@stages("optimize")
def build(
    opened: Bundle, request: TargetRequest, golden: Golden, options: RuntimeOptions, log: Log
) -> tuple[Target, dict[str, bytes]]:
    """Return the target, for the manifest, and its files.

    Args:
        opened: the bundle.
        request: the target.
        golden: golden data of the bundle.
        options: options of the runtime ort-cpu, which verifies the graphs.
        log: takes one line of progress.

    Raises:
        InputError: the target cannot read a graph, or no graph calls an op for which a plugin was requested.
        ParityError: the graphs differ from the reference.
    """
    stage("inline the functions of the graphs")
    models = inlined(opened, request.oldest, frozenset())
    variants = _variants(opened, request)
    lines = corpus.read_sentences(request.calibration) if request.calibration else golden.sentences
    builder = TargetBuilder(opened, request, golden, lines, options, log)
    plan = builder.plan(models, {}, {})
    if request.precision != "fp32" and not any(plan.converted.values()):
        raise ParityError(
            f"{opened.path}: no node of its graphs can be {request.precision} within the bounds; use fp32"
        )
    folder = f"targets/{request.name}"
    graphs = {
        name: GraphSpec(f"{folder}/{name}.onnx", spec.inputs, spec.outputs)
        for name, spec in opened.manifest.graphs.items()
    }
    files = {graphs[name].file: model.SerializeToString(deterministic=True) for name, model in plan.models.items()}
    settings: dict[str, Any] = {"fp32_islands": plan.pinned}
    if request.oldest:
        settings["min_version"] = format_version(request.oldest)
    if request.precision == "int8":
        settings["quantized"] = plan.converted
        settings["calibration"] = describe_calibration(lines, request.calibration)
    if request.build:
        settings["build"] = dataclasses.asdict(request.build)
    verification = _record(plan.report)
    if request.recipe.engines:
        settings["modules"] = {graphs[name].file: module_paths(model) for name, model in plan.models.items()}
        verification["engine"] = "not tested"
    if variants:
        variant_plan = builder.plan(variants, models, plan.models)
        variant_files = {name: f"{folder}/{name}.plugins.onnx" for name in variants}
        for name, file in variant_files.items():
            files[file] = without_bodies(variant_plan.models[name]).SerializeToString(deterministic=True)
            settings["modules"][file] = module_paths(variant_plan.models[name])
        settings["plugins"] = {"ops": list(request.plugins), "graphs": variant_files}
        verification["plugins"] = _record(variant_plan.report)
    return Target(request.target, request.precision, graphs, settings, verification), files


def describe_calibration(lines: Sequence[str], path: Path | None) -> dict[str, Any]:
    """Return what a target's settings store about the calibration lines."""
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return {"sentences": len(lines), "from": path.name if path else "golden data", "sha256": digest}


def _variants(opened: Bundle, request: TargetRequest) -> Models:
    """Return the graphs that call an op for which a plugin was requested, with these calls in them.

    Raises:
        InputError: no graph calls one of these ops, or TensorRT cannot read a graph with it.
    """
    if not request.plugins:
        return {}
    plugins = frozenset(request.plugins)
    models = inlined(opened, max(request.oldest or WITH_PLUGINS, WITH_PLUGINS), plugins)
    called = {name: {node.op_type for node in nodes(model.graph)} & plugins for name, model in models.items()}
    for op in request.plugins:
        if not any(op in ops for ops in called.values()):
            raise InputError(
                f"no graph of {opened.path} calls {op}, so --plugin {op} has no effect; the ops of ours that its "
                f"graphs call: {', '.join(_called_ops(opened)) or 'none'}"
            )
    return {name: models[name] for name, ops in called.items() if ops}


def _called_ops(opened: Bundle) -> list[str]:
    """Return the ops of the domain `edge_attn` that the bundle's graphs call."""
    graphs = opened.manifest.graphs.values()
    models = [load(opened.read(spec.file), f"{opened.path}: {spec.file}") for spec in graphs]
    return sorted({function.name for model in models for function in model.functions if function.domain == DOMAIN})


@dataclasses.dataclass(frozen=True)
class TargetBuilder:
    """Plans the precision of each node of one target's graphs."""

    opened: Bundle
    request: TargetRequest
    golden: Golden
    lines: Sequence[str]
    options: RuntimeOptions
    log: Log

    def plan(self, models: Models, fp32_graphs: Models, final_graphs: Models) -> PrecisionPlan:
        """Convert as many nodes of `models` as the bounds allow.

        Args:
            models: graphs to convert, in fp32.
            fp32_graphs: the bundle's other graphs in fp32, with which the sensitivity of a node is measured.
            final_graphs: the bundle's other graphs as they will run, with which the whole is verified.

        Raises:
            ParityError: the result differs from the reference.
        """
        opened, request = self.opened, self.request

        def verify(converted: Models) -> Report:
            candidate = with_graphs(opened, {**final_graphs, **converted}, request.precision)
            stage(f"verify the {request.name} graphs")
            runtime = OrtCpu(candidate, self.options)
            quick = check(candidate, runtime, self.golden, ("L1", "L2"))
            return check(candidate, runtime, self.golden) if quick.verdict == "holds" else quick

        def measure(converted: Models) -> np.ndarray:
            return log_probs(opened, {**fp32_graphs, **converted}, self.golden, self.options)

        stage(f"convert to {request.precision}")
        factory = request.recipe.conversions[request.precision]
        conversion = factory(opened, {**fp32_graphs, **models}, self.lines, self.options)
        plan = plan_precision(models, conversion, verify, measure, self.log)
        if plan.report.verdict != "holds":
            calls = f" that call {', '.join(request.plugins)}" if final_graphs else ""
            raise ParityError(
                f"the {request.name} graphs{calls} of {opened.path} differ from the reference: {plan.report.cause}"
            )
        return plan


def _record(report: Report) -> dict[str, Any]:
    measurements = {
        f"{entry.level} {entry.name}": entry.value
        for level in report.levels
        for entry in level.measurements
        if entry.level != "L1"
    }
    return {**report.summary(), "found": measurements}  # codespell:ignore found
