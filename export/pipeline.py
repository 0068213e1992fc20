"""`edge-attn export`: from a checkpoint to a verified bundle, top to bottom."""

from __future__ import annotations

import hashlib
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from edge_attn import __version__
from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import FORMAT, FileEntry, Manifest
from edge_attn.bundle.writer import check_output, write_bundle
from edge_attn.checkpoint import CARD, MODEL, load, load_samples, write_file
from edge_attn.errors import ExportError, InputError, ParityError
from edge_attn.export import checks
from edge_attn.export import samples as golden
from edge_attn.export.fold_embeddings import look_up_products
from edge_attn.export.trace import example_inputs, store_as_fp16, trace
from edge_attn.models.graphs import graphs
from edge_attn.reference import CANDIDATES, record_model
from edge_attn.registry import SERVICES, resolve
from edge_attn.spec import GraphSpec, TensorSpec
from edge_attn.text.corpus import read_sentences


def export(
    checkpoint: Path, out: Path, candidates: int = CANDIDATES, sentences: Path | None = None, force: bool = False
) -> Manifest:
    """Exports `checkpoint` into the bundle `out`: traced, checked, recorded and verified before it is written.

    Raises:
        CheckpointError, ExportError: the model does not export, or a check fails.
        ParityError: the bundle does not say what the reference says.
    """
    check_output(out, force)
    if candidates < 2:
        raise InputError(f"candidates must be at least 2 (a beam of one needs them), got {candidates}")
    model, text, config = load(checkpoint)
    files: dict[str, bytes] = dict(text.files())
    specs: dict[str, GraphSpec] = {}
    made: dict[str, Any] = {}
    for name, graph in graphs(model, candidates).items():
        proto, worst = graph_model(name, graph, graph.spec, half=config.training.storage == "fp16")
        files[graph.spec.file] = proto.SerializeToString(deterministic=True)
        specs[name] = graph.spec
        ops = Counter(f"{node.domain}::{node.op_type}".removeprefix("::") for node in proto.graph.node)
        made[name] = {"nodes": len(proto.graph.node), "ops": dict(sorted(ops.items())), "max_abs_from_torch": worst}
    samples = read_sentences(sentences) if sentences else load_samples(checkpoint)
    max_source = config.data.max_tokens
    said = record_model(model, text, golden.choose(text, samples, max_source), max_source, candidates)
    files.update(said.files())
    if (checkpoint / CARD).is_file():
        files["MODEL_CARD.md"] = (checkpoint / CARD).read_bytes()
    manifest = Manifest(
        format=FORMAT,
        family=config.model.family,
        task="seq2seq",
        precision="fp32",
        graphs=specs,
        max_source=max_source,
        provenance={
            "edge_attn": __version__,
            "checkpoint_sha256": hashlib.sha256((checkpoint / MODEL).read_bytes()).hexdigest(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "python": platform.python_version(),
            "graphs": made,
            "folded": True,
        },
        files={name: FileEntry("", 0) for name in files},
    )
    report = resolve("service", SERVICES, "verify")(Bundle(out, manifest, files), "ort-cpu", said)
    if report.verdict != "holds":
        raise ParityError(f"the exported bundle does not say what the reference says:\n{report}")
    verified = Manifest(**{**vars(manifest), "verification": report.summary()})
    return write_bundle(out, verified, files, force)


def graph_model(name: str, module: nn.Module, spec: GraphSpec, half: bool = False) -> tuple[onnx.ModelProto, float]:
    """One module as a checked ONNX model, and its largest difference from torch over all checked shapes."""
    checks.finite(module)
    sizes = {axis: 2 + i for i, axis in enumerate(_axes(spec))}
    sizes.update(src=7)
    proto = trace(module, spec, [torch.from_numpy(value) for value in example_inputs(spec, sizes)])
    look_up_products(proto)
    if half:
        store_as_fp16(proto)
    checks.structure(name, proto, spec)
    return proto, checks.agreement(name, proto, spec, module)


def export_module(
    module: nn.Module,
    out: str | os.PathLike[str],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, Sequence[Any]],
) -> GraphSpec:
    """Exports a user's own module, built from our layers or any other, to the ONNX file `out`, by the same path.

    It is exported, and left, in evaluation mode.
    `inputs` and `outputs` say, in forward's order, each tensor's dtype and shape; a string in a shape is a dynamic
    axis. For integers a third entry may give their range, where a string is an axis' size:

        export_module(
            module,
            "module.onnx",
            {"tokens": ("int64", ["batch", "src"], [0, 99]), "length": ("int64", ["batch"], [1, "src"])},
            {"context": ("float32", ["batch", 1, 64])},
        )

    Raises:
        ExportError: it does not export, or a check fails; nothing is written then.
        InputError: `out` cannot be written.
    """
    out = Path(out)
    spec = GraphSpec(out.name, _tensors(inputs), _tensors(outputs))
    proto, _ = graph_model(out.stem, module.eval(), spec)
    write_file(out, proto.SerializeToString(deterministic=True))
    return spec


def _tensors(described: Mapping[str, Sequence[Any]]) -> tuple[TensorSpec, ...]:
    made = []
    for name, description in described.items():
        try:
            dtype, shape, *values = description
            made.append(TensorSpec(name, np.dtype(dtype).name, tuple(shape), tuple(*values)))
        except (TypeError, ValueError) as error:
            raise ExportError(
                f"{name}: expected a dtype, a shape and perhaps a range, got {description!r}: {error}"
            ) from error
    return tuple(made)


def _axes(spec: GraphSpec) -> list[str]:
    return list(dict.fromkeys(axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)))
