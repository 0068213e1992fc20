"""Checks that every exported graph must pass. A failing check fails the export."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import torch

from edge_attn.errors import ExportError
from edge_attn.export import lower
from edge_attn.export.comparison import Comparison, check_sizes, run_module
from edge_attn.export.trace import example_inputs
from edge_attn.ops import DOMAIN, OPSET
from edge_attn.progress import track
from edge_attn.registry import OPS
from edge_attn.spec import GraphSpec

BATCHES = (1, 3, 32)
LENGTHS = (1, 2, 7, 50)
DRAWS = 4
"""Draws of inputs at a shape, one of which must give exact integers: with other inputs a tie does not repeat."""


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
        ExportError: a shape does not run, or an output differs from torch (comparison.py).
    """
    try:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no class but Exception
        raise ExportError(f"ONNX Runtime does not load the graph {name}: {error}") from error
    axes = sorted({axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)})
    comparison = Comparison(module, spec)
    for b, batch in enumerate(track(BATCHES, len(BATCHES) * len(LENGTHS), lambda _: len(LENGTHS), " shapes")):
        for s, length in enumerate(LENGTHS):
            sizes = {axis: 1 + (b + s + i) % 4 for i, axis in enumerate(axes)}
            sizes.update({axis: size for axis, size in (("batch", batch), ("src", length)) if axis in sizes})
            where = f"the graph {name} at {', '.join(f'{axis} {sizes[axis]}' for axis in axes)}"
            mismatch = ""
            for draw in range(DRAWS):
                inputs = example_inputs(spec, sizes, seed=(b * len(LENGTHS) + s) * DRAWS + draw)
                try:
                    expected = run_module(module, inputs)
                    actual = session.run(None, {t.name: value for t, value in zip(spec.inputs, inputs, strict=True)})
                except Exception as error:  # torch's errors share no other class either
                    raise ExportError(f"{where} does not run: {error}") from error
                mismatch = comparison.add(where, inputs, actual, expected)
                for tensor, value in zip(spec.outputs, actual, strict=True):
                    check_sizes(where, tensor, sizes, value)
                if not mismatch:
                    break
            if mismatch:
                raise ExportError(f"{mismatch}, and so with {DRAWS - 1} other draws of inputs")
    comparison.conclude()
    return comparison.worst
