"""Checks that every exported graph must pass. A failing check fails the export."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import torch

from edge_attn.errors import ExportError
from edge_attn.export import lower
from edge_attn.export.comparison import Comparison, check_sizes, run_module
from edge_attn.export.shapes import example_inputs, shapes, sizes_of
from edge_attn.ops import DOMAIN, OPSET
from edge_attn.progress import track
from edge_attn.registry import OPS
from edge_attn.spec import GraphSpec

DRAWS = 4
"""Draws of inputs at a shape, one of which must give exact integers: with other inputs a tie does not repeat."""


def finite(module: torch.nn.Module) -> None:
    """Check that no weight is NaN or infinite; a buffer, such as a mask, may be infinite.

    Raises:
        ExportError: a weight is; the error names its tensor.
    """
    masks = {name for name, _ in module.named_buffers()}
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        bad = int((torch.isnan(value) if name in masks else ~torch.isfinite(value)).sum())
        if bad:
            raise ExportError(f"{name} has {bad} weights that are NaN or infinite; the model cannot be exported")


def structure(name: str, model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Check that the graph is valid ONNX of our opset, uses every input, and calls our ops by the call rules.

    Raises:
        ExportError: one of these fails.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph {name} is not valid ONNX: {error}") from error
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("") != OPSET:
        raise ExportError(f"the graph {name} has opset {versions.get('')}, expected {OPSET}")
    nodes = list(lower.nodes(model.graph))
    used = {item for node in nodes for item in node.input}
    used |= {output.name for output in model.graph.output}
    for tensor in spec.inputs:
        if tensor.name not in used:
            raise ExportError(f"the graph {name} does not use its input {tensor.name}; remove it from the module")
    for node in nodes:
        if node.domain not in ("", DOMAIN) or (node.domain == DOMAIN and node.op_type not in OPS):
            raise ExportError(
                f"the graph {name} calls {node.domain}::{node.op_type}, which is neither in ONNX nor in edge-attn"
            )
        if node.domain == DOMAIN:
            attributes = {attribute.name for attribute in node.attribute}
            if not attributes >= lower.PLUGIN_ATTRIBUTES.keys() or not all([*node.input, *node.output]):
                raise ExportError(f"the graph {name}: the call of {node.op_type} breaks the call rules (edge_attn/ops)")


def agreement(
    name: str,
    model: onnx.ModelProto,
    spec: GraphSpec,
    module: torch.nn.Module,
    sizes: Iterable[Mapping[str, int]] | None = None,
    examples: Sequence[Sequence[np.ndarray]] = (),
) -> float:
    """Run the graph and torch at many sizes of the axes, and return the largest difference.

    Args:
        name: name of the graph, for errors.
        model: the exported graph.
        spec: its inputs and outputs.
        module: the module that it was exported from.
        sizes: sizes of the axes for random inputs; None is every axis small and large.
        examples: inputs of the user, compared as well.

    Raises:
        ExportError: a shape does not run, or an output differs from torch (comparison.py).
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it reports is in the exception
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no class but Exception
        raise ExportError(f"ONNX Runtime does not load the graph {name}: {_reason(error)}") from error
    comparison = Comparison(module, spec)

    def compare(at: Mapping[str, int], draws: Iterable[Sequence[np.ndarray]]) -> None:
        where = f"the graph {name} at {', '.join(f'{axis} {size}' for axis, size in sorted(at.items()))}"
        mismatch, count = "", 0
        for inputs in draws:
            count += 1
            try:
                expected = run_module(module, inputs)
                actual = session.run(None, {t.name: value for t, value in zip(spec.inputs, inputs, strict=True)})
            except Exception as error:  # torch's errors share no other class either
                raise ExportError(f"{where} does not run: {_reason(error)}") from error
            mismatch = comparison.add(where, inputs, actual, expected)
            for tensor, value in zip(spec.outputs, actual, strict=True):
                check_sizes(where, tensor, at, value)
            if not mismatch:
                return
        raise ExportError(f"{mismatch}, and so with {count - 1} other draws of inputs")

    all_sizes = list(shapes(spec) if sizes is None else sizes)
    for number, at in enumerate(track(all_sizes, len(all_sizes), lambda _: 1, " shapes")):
        compare(at, (example_inputs(spec, at, number * DRAWS + draw) for draw in range(DRAWS)))
    for inputs in examples:
        compare(sizes_of(spec, inputs), [inputs])
    comparison.conclude()
    return comparison.worst


def _reason(error: Exception) -> str:
    """Return the reason of an error of torch or ONNX Runtime on one line, without its codes."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    text = re.sub(r"^Non-zero status code returned while running (\w+) node\..*?Status Message: ", r"\1: ", text)
    text = re.sub(r"\S*/onnxruntime/\S+ onnxruntime::\S+\(.*?\) ", "", text)
    return text if len(text) <= 240 else f"{text[:237]}..."
