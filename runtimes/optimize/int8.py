"""int8 as QuantizeLinear and DequantizeLinear around matrix products with constant weights, the form TensorRT expects.

Weights are symmetric with one scale per output; activations are symmetric with one scale per tensor; zero points are 0.
The scale of an activation is its largest magnitude while the portable graphs translate the calibration lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import onnx

from edge_attn.errors import InputError
from edge_attn.runtimes.onnx_graph import Constants, prune

LEVELS = 127.0
"""Largest quantized magnitude; -128 is left out, so that the range is symmetric."""


def convertible_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the matrix products that can be quantized, each by the name of its output."""
    constants = Constants(model)
    return [node.output[0] for node in model.graph.node if _weight(node, constants) is not None]


def activations(model: onnx.ModelProto) -> list[str]:
    """Return the tensors whose range `to_int8` needs."""
    constants = Constants(model)
    return list(dict.fromkeys(n.input[0] for n in model.graph.node if _weight(n, constants) is not None))


def to_int8(model: onnx.ModelProto, nodes: Set[str], ranges: Mapping[str, float]) -> onnx.ModelProto:
    """Return the inlined `model` with the products `nodes` in int8; `ranges`: largest magnitude of each activation."""
    constants = Constants(model)
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    del converted.graph.node[:], converted.graph.value_info[:]
    graph = converted.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.int8), "int8.zero"))
    quantized: dict[str, str] = {}
    for node in model.graph.node:
        weight = _weight(node, constants) if node.output and node.output[0] in nodes else None
        if weight is None:
            graph.node.append(node)
            continue
        source = node.input[0]
        if source not in quantized:
            quantized[source] = _quantize_activation(graph, source, ranges[source])
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.input[0] = quantized[source]
        twin.input[1] = _quantize_weight(graph, node, weight)
        graph.node.append(twin)
    prune(converted)
    return converted


def _weight(node: onnx.NodeProto, constants: Constants) -> np.ndarray | None:
    """Return the constant matrix of an fp32 product; None for any other node."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    value = constants.get(node.input[1])
    if value is None or value.ndim != 2 or value.dtype != np.float32 or constants.get(node.input[0]) is not None:
        return None
    return value


def _scale(largest: np.ndarray) -> np.ndarray:
    """Return the scale of each largest magnitude; any scale represents a tensor that is 0 throughout."""
    scale: np.ndarray = (np.where(largest > 0, largest, LEVELS) / LEVELS).astype(np.float32)
    return scale


def _quantize_activation(graph: onnx.GraphProto, name: str, largest: float) -> str:
    """Add quantization and dequantization of a tensor; return the name of the result.

    Raises:
        InputError: the largest magnitude is not finite.
    """
    if not np.isfinite(largest):
        raise InputError(f"{name} reaches {largest} on the calibration lines, so it has no scale; verify the bundle")
    quantized, result, parameters = f"{name}.int8", f"{name}.dequantized", [f"{name}.scale", "int8.zero"]
    graph.initializer.append(onnx.numpy_helper.from_array(_scale(np.array(largest)), parameters[0]))
    for op, source, output in (("Quantize", name, quantized), ("Dequantize", quantized, result)):
        graph.node.append(onnx.helper.make_node(f"{op}Linear", [source, *parameters], [output], name=f"{op}_{name}"))
    return result


def _quantize_weight(graph: onnx.GraphProto, node: onnx.NodeProto, weight: np.ndarray) -> str:
    """Add an int8 weight and its dequantization; return the name of the result.

    Raises:
        InputError: the weight contains NaN or infinity.
    """
    if not np.isfinite(weight).all():
        raise InputError(f"the weights of {node.name} contain NaN or infinity and so have no scale; verify the bundle")
    transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
    axis = 0 if transposed else 1
    scale = _scale(np.abs(weight).max(1 - axis))  # (outputs,)
    steps = np.clip(np.rint(weight / np.expand_dims(scale, 1 - axis)), -LEVELS, LEVELS)  # the weight's shape
    name = f"{node.output[0]}.weight"
    for suffix, values in (("int8", steps.astype(np.int8)), ("scale", scale), ("zero", np.zeros(scale.shape, np.int8))):
        graph.initializer.append(onnx.numpy_helper.from_array(values, f"{name}.{suffix}"))
    inputs = [f"{name}.int8", f"{name}.scale", f"{name}.zero"]
    graph.node.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], name=f"Dequantize_{name}", axis=axis))
    return name
