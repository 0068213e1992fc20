"""What a graph must pass before it leaves the house. A failing check fails the export."""

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
"""Largest absolute difference from torch on random inputs of any shape; fp32 gives about 1e-6."""
SWAPPED = 0.01
"""Share of the integers that may differ, over all shapes: the ids of candidates that tie within rounding swap."""


def finite(module: torch.nn.Module) -> None:
    """No weight is NaN or infinite."""
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise ExportError(f"{name} holds {bad} weights that are NaN or infinite; the model cannot be exported")


def structure(name: str, model: onnx.ModelProto, spec: GraphSpec) -> None:
    """The graph is valid ONNX of our opset, uses every input, and calls our ops by the call rules."""
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
            raise ExportError(f"the graph {name} calls {node.domain}::{node.op_type}, which is neither ONNX nor ours")
        if node.domain == DOMAIN:
            given = {attribute.name for attribute in node.attribute}
            if not {"plugin_namespace", "plugin_version"} <= given or not all([*node.input, *node.output]):
                raise ExportError(f"the graph {name}: the call of {node.op_type} breaks the call rules (edge_attn/ops)")


def agreement(name: str, model: onnx.ModelProto, spec: GraphSpec, module: torch.nn.Module) -> float:
    """Runs the graph and torch at every batch and length; gives the largest difference.

    Raises:
        ExportError: a shape fails, a value is NaN, or they differ by more than TOLERANCE.
    """
    try:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no class but Exception
        raise ExportError(f"ONNX Runtime does not load the graph {name}: {error}") from error
    axes = sorted({axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)})
    worst, swapped, integers = 0.0, 0, 0
    for b, batch in enumerate(BATCHES):
        for s, length in enumerate(LENGTHS):
            sizes = {axis: 1 + (b + s + i) % 4 for i, axis in enumerate(axes)}
            sizes.update({axis: size for axis, size in (("batch", batch), ("src", length)) if axis in sizes})
            inputs = example_inputs(spec, sizes, seed=b * len(LENGTHS) + s)
            where = f"the graph {name} at {', '.join(f'{axis} {sizes[axis]}' for axis in axes)}"
            try:
                with torch.no_grad():
                    expected = _flat(module(*(torch.from_numpy(value) for value in inputs)))
                found = session.run(None, {t.name: value for t, value in zip(spec.inputs, inputs, strict=True)})
            except Exception as error:  # the same holds for torch's
                raise ExportError(f"{where} does not run: {error}") from error
            for tensor, one, other in zip(spec.outputs, found, expected, strict=True):
                apart = _apart(f"{where}: {tensor.name}", tensor, sizes, one, other)
                if np.issubdtype(one.dtype, np.floating):
                    worst = max(worst, apart)
                else:
                    swapped, integers = swapped + int(apart), integers + one.size
    if swapped > SWAPPED * integers:
        raise ExportError(f"the graph {name}: {swapped} of {integers} integers are not those of torch")
    return worst


def _flat(said: Any) -> list[np.ndarray]:
    """The tensors of what a module gives, in the order in which they are exported; what is None is left out."""
    if isinstance(said, torch.Tensor):
        return [said.numpy()]
    parts = said.values() if isinstance(said, Mapping) else said
    return [tensor for part in parts if part is not None for tensor in _flat(part)]


def _apart(where: str, tensor: TensorSpec, sizes: Mapping[str, int], found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; of integers and booleans, how many differ."""
    if found.shape != expected.shape:
        raise ExportError(f"{where} has shape {found.shape}, torch gives {expected.shape}")
    if any(sizes.get(axis, size) != size for axis, size in zip(tensor.shape, found.shape, strict=True)):
        raise ExportError(f"{where} has shape {found.shape}, described was {tensor}")
    if not np.issubdtype(found.dtype, np.floating):
        return float((found != expected).sum())
    if not np.isfinite(found).all():
        raise ExportError(f"{where} holds NaN or infinity")
    apart = float(np.max(np.abs(found - expected), initial=0.0))
    if not apart <= TOLERANCE:
        raise ExportError(f"{where} differs from torch by {apart:.3g}, at most {TOLERANCE} holds")
    return apart
