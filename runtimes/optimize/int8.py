"""int8 as QuantizeLinear and DequantizeLinear around matrix products with constant weights, as TensorRT wants them.

Weights are symmetric, a scale for each output; activations are symmetric, one scale a tensor, zero point 0. The
scales of activations are the largest magnitudes seen while the portable graphs translate the calibration lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import onnx

from edge_attn.errors import InputError
from edge_attn.runtimes.onnx_graph import Constants, prune

LEVELS = 127.0
"""-128 is left out, so that the range is symmetric."""


def lowerable(model: onnx.ModelProto) -> list[str]:
    """The products that may be quantized, each by the name of its output."""
    constants = Constants(model)
    return [node.output[0] for node in model.graph.node if _weight(node, constants) is not None]


def activations(model: onnx.ModelProto) -> list[str]:
    """The tensors whose largest magnitude `int8` asks for."""
    constants = Constants(model)
    return list(dict.fromkeys(n.input[0] for n in model.graph.node if _weight(n, constants) is not None))


def int8(model: onnx.ModelProto, lowered: Set[str], largest: Mapping[str, float]) -> onnx.ModelProto:
    """`model` (inlined) with the products `lowered` in int8; `largest`: the largest magnitude of each activation."""
    constants = Constants(model)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.value_info[:]
    graph = made.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.int8), "int8.zero"))
    quantized: dict[str, str] = {}
    for node in model.graph.node:
        weight = _weight(node, constants) if node.output and node.output[0] in lowered else None
        if weight is None:
            graph.node.append(node)
            continue
        source = node.input[0]
        if source not in quantized:
            quantized[source] = _activation(graph, source, largest[source])
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.input[0] = quantized[source]
        twin.input[1] = _quantized_weight(graph, node, weight)
        graph.node.append(twin)
    prune(made)
    return made


def _weight(node: onnx.NodeProto, constants: Constants) -> np.ndarray | None:
    """The constant matrix of a product in fp32; None of any other node."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    value = constants.get(node.input[1])
    if value is None or value.ndim != 2 or value.dtype != np.float32 or constants.get(node.input[0]) is not None:
        return None
    return value


def _scale(largest: np.ndarray) -> np.ndarray:
    """Of what is 0 throughout, any scale will do."""
    scale: np.ndarray = (np.where(largest > 0, largest, LEVELS) / LEVELS).astype(np.float32)
    return scale


def _activation(graph: onnx.GraphProto, name: str, largest: float) -> str:
    if not np.isfinite(largest):
        raise InputError(f"{name} reaches {largest} on the calibration lines, so it has no scale; verify the bundle")
    scale = onnx.numpy_helper.from_array(_scale(np.array(largest)), f"{name}.scale")
    graph.initializer.append(scale)
    graph.node.append(
        onnx.helper.make_node(
            "QuantizeLinear", [name, scale.name, "int8.zero"], [f"{name}.int8"], name=f"Quantize_{name}"
        )
    )
    graph.node.append(
        onnx.helper.make_node(
            "DequantizeLinear",
            [f"{name}.int8", scale.name, "int8.zero"],
            [f"{name}.dequantized"],
            name=f"Dequantize_{name}",
        )
    )
    return f"{name}.dequantized"


def _quantized_weight(graph: onnx.GraphProto, node: onnx.NodeProto, weight: np.ndarray) -> str:
    if not np.isfinite(weight).all():
        raise InputError(f"the weights of {node.name} hold NaN or infinity, so they have no scale; verify the bundle")
    transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
    axis = 0 if transposed else 1
    scale = _scale(np.abs(weight).max(1 - axis))
    steps = np.clip(np.rint(weight / np.expand_dims(scale, 1 - axis)), -LEVELS, LEVELS)
    name = f"{node.output[0]}.weight"
    for suffix, values in (("int8", steps.astype(np.int8)), ("scale", scale), ("zero", np.zeros(scale.shape, np.int8))):
        graph.initializer.append(onnx.numpy_helper.from_array(values, f"{name}.{suffix}"))
    graph.node.append(
        onnx.helper.make_node(
            "DequantizeLinear",
            [f"{name}.int8", f"{name}.scale", f"{name}.zero"],
            [name],
            name=f"Dequantize_{name}",
            axis=axis,
        )
    )
    return name
