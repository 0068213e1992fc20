"""Making the graphs of one target: chosen and verified by the golden data, with and without the plugins on offer.

A plugin is an offer. The graphs of a target call none; beside each graph that holds an op which a plugin may serve
stands a variant that calls it, and the device measures which of the two is quicker.
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
from edge_attn.runtimes.onnx_graph import load, module_paths, nodes
from edge_attn.runtimes.optimize.calibration import Models, log_probs, view
from edge_attn.runtimes.optimize.inline import without_bodies
from edge_attn.runtimes.optimize.mixed_precision import Chosen, choose
from edge_attn.runtimes.optimize.targets import Recipe, inlined
from edge_attn.runtimes.optimize.trt_operators import WITH_PLUGINS, Version
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.trt.builder import BuildConfig
from edge_attn.runtimes.verification.report import Report
from edge_attn.runtimes.verification.verify import check
from edge_attn.spec import GraphSpec
from edge_attn.text import corpus

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to make, and of what."""

    target: str
    precision: str
    recipe: Recipe
    oldest: Version | None = None
    """The oldest version that must read the graphs; of the variants with plugins, at least WITH_PLUGINS."""
    plugins: tuple[str, ...] = ()
    """Ops that a plugin may serve."""
    calibration: Path | None = None
    build: BuildConfig | None = None
    """How engines are built, where that was asked for."""

    @property
    def name(self) -> str:
        return f"{self.target}-{self.precision}"


def make(
    opened: Bundle, wanted: Wanted, said: Golden, options: RuntimeOptions, say: Say
) -> tuple[Target, dict[str, bytes]]:
    """What the bundle is to keep: the target, and its files.

    Raises:
        InputError: a graph that the target cannot read; none calls an op that a plugin was offered for.
        ParityError: what was made does not say what the reference says.
    """
    models = inlined(opened, wanted.oldest, frozenset())
    variants = _variants(opened, wanted)
    lines = corpus.read_sentences(wanted.calibration) if wanted.calibration else said.sentences
    making = _Making(opened, wanted, said, lines, options, say)
    plain = making.choose(models, {}, {})
    if wanted.precision != "fp32" and not any(plain.lowered.values()):
        raise ParityError(f"{opened.path}: nothing of its graphs can be {wanted.precision} within the bounds; use fp32")
    settings: dict[str, Any] = {"fp32_islands": plain.pinned}
    if wanted.oldest:
        settings["min_version"] = shown(wanted.oldest)
    if wanted.precision == "int8":
        settings["quantized"] = plain.lowered
        settings["calibration"] = calibration(lines, wanted.calibration)
    if wanted.build:
        settings["build"] = dataclasses.asdict(wanted.build)
    folder = f"targets/{wanted.name}"
    graphs = {
        name: GraphSpec(f"{folder}/{name}.onnx", spec.inputs, spec.outputs)
        for name, spec in opened.manifest.graphs.items()
    }
    files = {graphs[name].file: model.SerializeToString(deterministic=True) for name, model in plain.models.items()}
    if wanted.recipe.engines:
        settings["modules"] = {graphs[name].file: module_paths(model) for name, model in plain.models.items()}
    verification = _record(plain.report)
    if wanted.recipe.engines:
        verification["engine"] = "not tested"
    if variants:
        calling = making.choose(variants, models, plain.models)
        found = {name: f"{folder}/{name}.plugins.onnx" for name in variants}
        for name, file in found.items():
            files[file] = without_bodies(calling.models[name]).SerializeToString(deterministic=True)
            settings["modules"][file] = module_paths(calling.models[name])
        settings["plugins"] = {"ops": list(wanted.plugins), "graphs": found}
        verification["plugins"] = _record(calling.report)
    return Target(wanted.target, wanted.precision, graphs, settings, verification), files


def calibration(lines: Sequence[str], path: Path | None) -> dict[str, Any]:
    """What a target's settings say of the lines that its scales come from."""
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return {"sentences": len(lines), "from": path.name if path else "golden data", "sha256": digest}


def shown(version: Version) -> str:
    return ".".join(map(str, version))


def _variants(opened: Bundle, wanted: Wanted) -> Models:
    """The graphs that call an op which a plugin may serve, with these calls left in them.

    Raises:
        InputError: no graph calls one of these ops, or TensorRT cannot read a graph with it.
    """
    if not wanted.plugins:
        return {}
    offered = frozenset(wanted.plugins)
    made = inlined(opened, max(wanted.oldest or WITH_PLUGINS, WITH_PLUGINS), offered)
    called = {name: {node.op_type for node in nodes(model.graph)} & offered for name, model in made.items()}
    for op in wanted.plugins:
        if not any(op in ops for ops in called.values()):
            raise InputError(
                f"no graph of {opened.path} calls {op}, so --plugin {op} serves nothing; the ops of ours that its "
                f"graphs call: {', '.join(_ours(opened)) or 'none'}"
            )
    return {name: made[name] for name, ops in called.items() if ops}


def _ours(opened: Bundle) -> list[str]:
    """The ops of ours that the bundle's graphs call."""
    graphs = opened.manifest.graphs.values()
    models = [load(opened.read(spec.file), f"{opened.path}: {spec.file}") for spec in graphs]
    return sorted({function.name for model in models for function in model.functions if function.domain == DOMAIN})


@dataclasses.dataclass(frozen=True)
class _Making:
    """What every choice for one target is made with."""

    opened: Bundle
    wanted: Wanted
    said: Golden
    lines: Sequence[str]
    options: RuntimeOptions
    say: Say

    def choose(self, models: Models, beside: Models, ready: Models) -> Chosen:
        """`models` lowered as far as the bounds let them, beside the bundle's other graphs: in fp32 as `beside`, where
        the damage of a node is measured, and as they will run, `ready`, where the whole is verified.

        Raises:
            ParityError: they do not say what the reference says.
        """
        opened, wanted = self.opened, self.wanted

        def verified(made: Models) -> Report:
            seen = view(opened, {**ready, **made}, wanted.precision)
            running = OrtCpu(seen, self.options)
            first = check(seen, running, self.said, ("L1", "L2"))
            return check(seen, running, self.said) if first.verdict == "holds" else first

        def measured(made: Models) -> np.ndarray:
            return log_probs(opened, {**beside, **made}, self.said, self.options)

        lowering = wanted.recipe.lowerings[wanted.precision](opened, {**beside, **models}, self.lines, self.options)
        chosen = choose(models, lowering, verified, measured, self.say)
        if chosen.report.verdict != "holds":
            calls = f" that call {', '.join(wanted.plugins)}" if ready else ""
            raise ParityError(
                f"the {wanted.name} graphs{calls} of {opened.path} do not say what the reference says:\n{chosen.report}"
            )
        return chosen


def _record(report: Report) -> dict[str, Any]:
    findings = {
        f"{f.level} {f.name}": f.value for level in report.levels for f in level.measurements if f.level != "L1"
    }
    return {**report.summary(), "found": findings}
