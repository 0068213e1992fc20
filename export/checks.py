"""What a graph must pass before it leaves the house. A failing check fails the export."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import torch

from edge_attn.errors import ExportError
from edge_attn.ops import DOMAIN, OPSET
from edge_attn.registry import OPS
from edge_attn.spec import GraphSpec
from export.trace import example_inputs

BATCHES = (1, 3, 32)
LENGTHS = (1, 2, 7, 50)
TOLERANCE = 1e-4
"""Largest absolute difference from torch on random inputs of any shape; fp32 gives about 1e-6."""


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
    used = {item for node in model.graph.node for item in node.input}
    used |= {output.name for output in model.graph.output}
    for tensor in spec.inputs:
        if tensor.name not in used:
            raise ExportError(f"the graph {name} does not use its input {tensor.name}; remove it from the module")
    for node in model.graph.node:
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
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    axes = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
    worst = 0.0
    for b, batch in enumerate(BATCHES):
        for s, length in enumerate(LENGTHS):
            sizes = dict.fromkeys(axes, 1 + (b + s) % 4)
            sizes.update(batch=batch, src=length)
            inputs = example_inputs(spec, sizes, seed=b * len(LENGTHS) + s)
            where = f"the graph {name} at {', '.join(f'{axis} {sizes[axis]}' for axis in sorted(axes))}"
            with torch.no_grad():
                said = module(*(torch.from_numpy(value) for value in inputs))
            expected = [said] if isinstance(said, torch.Tensor) else list(said)
            try:
                found = session.run(None, {t.name: value for t, value in zip(spec.inputs, inputs, strict=True)})
            except Exception as error:  # ONNX Runtime's errors share no class but Exception
                raise ExportError(f"{where} does not run: {error}") from error
            worst = max(worst, _compare(where, spec, found, [value.numpy() for value in expected]))
    return worst


def _compare(where: str, spec: GraphSpec, found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    worst = 0.0
    for tensor, one, other in zip(spec.outputs, found, expected, strict=True):
        if one.shape != other.shape:
            raise ExportError(f"{where}: {tensor.name} has shape {one.shape}, torch gives {other.shape}")
        if not np.issubdtype(one.dtype, np.floating):
            continue  # ids of candidates that tie may swap; the candidates' log-probabilities are compared
        if not np.isfinite(one).all():
            raise ExportError(f"{where}: {tensor.name} holds NaN or infinity")
        apart = float(np.max(np.abs(one - other), initial=0.0))
        if not apart <= TOLERANCE:
            raise ExportError(f"{where}: {tensor.name} differs from torch by {apart:.3g}, at most {TOLERANCE} holds")
        worst = max(worst, apart)
    return worst
