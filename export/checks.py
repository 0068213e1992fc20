"""Checks that every exported graph must pass. A failing check fails the export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from edge_attn.errors import ExportError
from edge_attn.export import lower
from edge_attn.export.trace import example_inputs
from edge_attn.ops import DOMAIN, OPSET
from edge_attn.registry import OPS
from edge_attn.spec import GraphSpec, TensorSpec

BATCHES = (1, 3, 32)
LENGTHS = (1, 2, 7, 50)
TOLERANCE = 1e-4
"""Largest absolute difference allowed from torch on random inputs of any shape; in fp32 it is about 1e-6."""
MAX_INTEGER_MISMATCHES = 0.01
"""Share of the integers that may differ, over all shapes: ids of candidates that tie within rounding swap places."""


def finite(module: torch.nn.Module) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        ExportError: a weight is; the error names its tensor.
    """
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
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


def agreement(name: str, model: onnx.ModelProto, spec: GraphSpec, module: torch.nn.Module) -> float:
    """Run the graph and torch at every batch and length, and return the largest difference.

    Args:
        name: name of the graph, for errors.
        model: the exported graph.
        spec: its inputs and outputs.
        module: the module that it was exported from.

    Raises:
        ExportError: a shape fails, a value is NaN, or the difference exceeds TOLERANCE.
    """
    try:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no class but Exception
        raise ExportError(f"ONNX Runtime does not load the graph {name}: {error}") from error
    axes = sorted({axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)})
    worst, mismatches, integers = 0.0, 0, 0
    for b, batch in enumerate(BATCHES):
        for s, length in enumerate(LENGTHS):
            sizes = {axis: 1 + (b + s + i) % 4 for i, axis in enumerate(axes)}
            sizes.update({axis: size for axis, size in (("batch", batch), ("src", length)) if axis in sizes})
            inputs = example_inputs(spec, sizes, seed=b * len(LENGTHS) + s)
            where = f"the graph {name} at {', '.join(f'{axis} {sizes[axis]}' for axis in axes)}"
            try:
                with torch.no_grad():
                    expected = _flatten(module(*(torch.from_numpy(value) for value in inputs)))
                actual = session.run(None, {t.name: value for t, value in zip(spec.inputs, inputs, strict=True)})
            except Exception as error:  # torch's errors share no other class either
                raise ExportError(f"{where} does not run: {error}") from error
            for tensor, value, reference in zip(spec.outputs, actual, expected, strict=True):
                difference = _max_difference(f"{where}: {tensor.name}", tensor, sizes, value, reference)
                if np.issubdtype(value.dtype, np.floating):
                    worst = max(worst, difference)
                else:
                    mismatches, integers = mismatches + int(difference), integers + value.size
    if mismatches > MAX_INTEGER_MISMATCHES * integers:
        raise ExportError(f"the graph {name}: {mismatches} of {integers} integers differ from torch")
    return worst


def _flatten(outputs: Any) -> list[np.ndarray]:
    """Return the tensors of a module's nested outputs in the order of their export, without None."""
    if isinstance(outputs, torch.Tensor):
        return [outputs.numpy()]
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [tensor for part in parts if part is not None for tensor in _flatten(part)]


def _max_difference(
    where: str, tensor: TensorSpec, sizes: Mapping[str, int], actual: np.ndarray, expected: np.ndarray
) -> float:
    """Return the largest difference; for integers and booleans, the number that differ."""
    if actual.shape != expected.shape:
        raise ExportError(f"{where} has shape {actual.shape}, torch returns {expected.shape}")
    if any(sizes.get(axis, size) != size for axis, size in zip(tensor.shape, actual.shape, strict=True)):
        raise ExportError(f"{where} has shape {actual.shape}, expected {tensor}")
    if not np.issubdtype(actual.dtype, np.floating):
        return float((actual != expected).sum())
    if not np.isfinite(actual).all():
        raise ExportError(f"{where} contains NaN or infinity")
    difference = float(np.max(np.abs(actual - expected), initial=0.0))
    if not difference <= TOLERANCE:  # NaN fails too
        raise ExportError(f"{where} differs from torch by {difference:.3g}, at most {TOLERANCE} is allowed")
    return difference
