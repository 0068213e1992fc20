"""`edge-attn export`: from a checkpoint to a verified bundle, top to bottom."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import nn

from edge_attn import __version__
from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.export_inputs import check_inputs
from edge_attn.bundle.manifest import FORMAT, Manifest
from edge_attn.bundle.writer import list_files, write_bundle
from edge_attn.checkpoint import CARD, MODEL, load, load_samples
from edge_attn.errors import ParityError
from edge_attn.export import checks
from edge_attn.export.comparison import check_repeatable
from edge_attn.export.fold_embeddings import fold_embedding_matmul
from edge_attn.export.inline import inline_functions
from edge_attn.export.samples import choose_sentences, warn_of_odd_lines
from edge_attn.export.shapes import example_inputs, traced_sizes
from edge_attn.export.trace import store_as_fp16, trace
from edge_attn.models.graphs import Graph, encoder_decoder_graphs
from edge_attn.parity.results import LevelResult
from edge_attn.parity.task import References, Task
from edge_attn.parity.tolerances import bounds
from edge_attn.progress import expect_stages, stage, stages
from edge_attn.reference import CANDIDATES, ModelReferences
from edge_attn.registry import TASKS, VERBS, resolve
from edge_attn.spec import GraphSpec


def export(
    checkpoint: Path,
    out: Path,
    candidates: int = CANDIDATES,
    sentences: Path | None = None,
    force: bool = False,
    overrides: Mapping[str, float] | None = None,
    inline: bool = False,
) -> Manifest:
    """Export a checkpoint to a bundle that is verified before it is written.

    Args:
        checkpoint: folder of the trained model.
        out: bundle to write: a folder, or a zip if it ends in .zip.
        candidates: best tokens that a step returns; a beam is at most one less.
        sentences: file of source sentences for the golden data; by default those of the checkpoint.
        force: replace a bundle at `out`.
        overrides: bounds of the verification by name, for this export.
        inline: write graphs of standard ops and fp32 weights, for runtimes and tools that take no functions.

    Raises:
        UsageError: an override is not a bound, or not a finite number of at least 0.
        CheckpointError, ExportError: the model does not export, or a check fails.
        ParityError: the results of the bundle differ from the reference.
    """
    bounds("fp32", {}, overrides or {})
    lines = check_inputs(checkpoint, out, candidates, sentences, force)
    with stages("load"):
        stage(str(checkpoint))
        model, text, config = load(checkpoint)
    if sentences is not None and lines is not None:
        warn_of_odd_lines(sentences, lines, text)
    max_source = config.data.max_tokens
    files: dict[str, bytes] = dict(text.files())
    if (checkpoint / CARD).is_file():
        files["MODEL_CARD.md"] = (checkpoint / CARD).read_bytes()
    manifest = Manifest(
        format=FORMAT,
        family=config.model.family,
        task="translation",
        precision="fp32",
        graphs={},
        max_source=max_source,
        provenance={
            "checkpoint_sha256": hashlib.sha256((checkpoint / MODEL).read_bytes()).hexdigest(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "folded": True,
            "cell": config.model.cell,
            "attention": config.model.attention_kind,
        },
    )
    return export_graphs(
        out,
        manifest,
        files,
        encoder_decoder_graphs(model, candidates),
        ModelReferences(model, candidates),
        choose_sentences(text, load_samples(checkpoint) if lines is None else lines, max_source),
        force,
        half=config.training.storage == "fp16",
        overrides=overrides,
        inline=inline,
    )


@stages("export")
def export_graphs(
    out: Path,
    manifest: Manifest,
    files: Mapping[str, bytes],
    graphs: Mapping[str, Graph],
    references: References,
    inputs: Sequence[str],
    force: bool = False,
    half: bool = False,
    overrides: Mapping[str, float] | None = None,
    inline: bool = False,
) -> Manifest:
    """Trace and check graphs, record golden data, verify, and write the bundle. Return its manifest.

    Args:
        out: bundle to write.
        manifest: family, task and provenance; graphs, files and verification are added here.
        files: files of the bundle beside graphs and golden data, by name.
        graphs: modules to export, by graph name.
        references: the model that golden data is recorded from.
        inputs: inputs of the golden data, as users write them.
        force: replace a bundle at `out`.
        half: store weights as fp16 where no value changes.
        overrides: bounds of the verification by name, for this export.
        inline: write graphs of standard ops and fp32 weights.

    Raises:
        ExportError: a graph does not export, or a check fails.
        ParityError: the results of the bundle differ from the reference.
        InputError: `out` cannot be written.
    """
    task: Task = resolve("task", TASKS, manifest.task)
    files, details = dict(files), {}
    expect_stages(2 * len(graphs) + 3)
    for name, graph in graphs.items():
        proto, max_abs = graph_model(name, graph, graph.spec, half, inline)
        files[graph.spec.file] = proto.SerializeToString(deterministic=True)
        ops = Counter(f"{node.domain}::{node.op_type}".removeprefix("::") for node in proto.graph.node)
        details[name] = {
            "nodes": len(proto.graph.node),
            "ops": dict(sorted(ops.items())),
            "max_abs_from_torch": max_abs,
        }
    versions = {
        "edge_attn": __version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "python": platform.python_version(),
    }
    manifest = dataclasses.replace(
        manifest,
        graphs={name: graph.spec for name, graph in graphs.items()},
        provenance={**manifest.provenance, **versions, "graphs": details},
    )
    stage(f"run the reference, {len(inputs)} sentences")
    golden = task.record(Bundle(out, manifest, files), references, inputs)
    files.update(golden.files())
    manifest = list_files(out, dataclasses.replace(manifest, golden=golden.contents()), files)
    stage("verify")
    report = resolve("verb", VERBS, "verify")(Bundle(out, manifest, files), overrides=overrides)
    if report.verdict != "holds":
        raise ParityError(f"the exported bundle differs from the reference: {_failures(report.levels)}")
    stage(f"write {out}")
    return write_bundle(out, dataclasses.replace(manifest, verification=report.summary()), files, force)


def _failures(levels: Sequence[LevelResult]) -> str:
    """Return the first figure outside of its bound, its place, the number of others, and the way out, in one line."""
    failed = [measurement for level in levels for measurement in level.measurements if not measurement.ok]
    if not failed:
        return "; ".join(f"{level.name} {level.status} {level.reason}".strip() for level in levels)
    first = failed[0]
    place = f" ({first.where})" if first.where else ""
    return (
        f"{first.level} {first.name} is {first.value:.3g}, at most {first.bound:.3g} is allowed{place}; "
        f"{len(failed) - 1} other figures fail; "
        f"--override {first.level}.{first.name.partition(' ')[0]}=VALUE changes a bound"
    )


def graph_model(
    name: str, module: nn.Module, spec: GraphSpec, half: bool = False, inline: bool = False
) -> tuple[onnx.ModelProto, float]:
    """Return a module as a checked ONNX model, and its largest difference from torch over all checked shapes.

    Args:
        name: name of the graph, for errors.
        module: module to export.
        spec: its inputs and outputs.
        half: store weights as fp16 where no value changes.
        inline: return a graph of standard ops and fp32 weights.

    Raises:
        ExportError: it does not export, or a check fails.
    """
    stage(f"trace {name}")
    checks.finite(module)
    example = example_inputs(spec, traced_sizes(spec))
    check_repeatable(module.eval(), example)
    proto = trace(module, spec, [torch.from_numpy(value) for value in example])
    fold_embedding_matmul(proto)
    if inline:
        proto = inline_functions(proto)
    elif half:
        store_as_fp16(proto)
    stage(f"compare {name} with torch at many shapes")
    checks.structure(name, proto, spec)
    return proto, checks.agreement(name, proto, spec, module)
