"""fp16 as explicit casts: one graph that ONNX Runtime, TensorRT 10 and strongly typed TensorRT 11 read alike.

Inputs and outputs keep their types. Each converted node computes in fp16; every other one is an fp32 island, with one
Cast per tensor at the fp32/fp16 boundary. A weight that is stored as fp16 is used as it is.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx

from edge_attn.runtimes.onnx_graph import opset, prune, subgraphs, types

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
SUMS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
ISLANDS = frozenset(
    {"Softmax", "LogSoftmax", "TopK", "CumSum", "Exp", "Log", "Pow", "ArgMax", "ArgMin"}
    | {f"Reduce{name}" for name in SUMS}
    | {f"{name}Normalization" for name in ("Batch", "Group", "Instance", "Layer", "Lp", "MeanVariance", "RMS")}
)
"""Ops that stay fp32: they sum over long axes, overflow early, or pick tokens."""
TYPED = frozenset({"Constant", "ConstantOfShape", "EyeLike", "QuantizeLinear", "DequantizeLinear", "Range"})
"""Ops whose output type is not that of their inputs."""


def convertible_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the nodes that can compute in fp16, each by the name of its first output."""
    kinds, version = types(model), opset(model)
    return [node.output[0] for node in model.graph.node if _is_convertible(node, kinds, version)]


def to_float16(model: onnx.ModelProto, nodes: Set[str]) -> onnx.ModelProto:
    """Return the inlined `model` with `nodes`, by the names of their first outputs, in fp16."""
    kinds, version = types(model), opset(model)
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    del converted.graph.node[:], converted.graph.value_info[:]
    writer = _Writer(converted.graph)
    for node in model.graph.node:
        if node.output[0] in nodes and _is_convertible(node, kinds, version):
            writer.add_half(node, kinds, version)
        else:
            writer.add(node, kinds)
    prune(converted)
    return converted


class _Writer:
    """Copies nodes to a graph; the fp32 form of a tensor keeps its name, its fp16 form is added on first use."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._halves: dict[str, str] = {}
        """fp16 form of a tensor, by the name of the fp32 form."""

    def add(self, node: onnx.NodeProto, kinds: dict[str, int]) -> None:
        self._graph.node.append(node)
        if node.op_type == "Cast" and kinds.get(node.input[0]) == HALF and kinds.get(node.output[0]) == FLOAT:
            self._halves[node.output[0]] = node.input[0]

    def add_half(self, node: onnx.NodeProto, kinds: dict[str, int], version: int) -> None:
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        for i, name in enumerate(node.input):
            if kinds.get(name) == FLOAT and _has_half(node, "inputs", i, version):
                twin.input[i] = self._half(name)
        for attribute in twin.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = HALF
        casts = []
        for i, name in enumerate(node.output):
            if kinds.get(name) == FLOAT:
                twin.output[i] = self._halves[name] = f"{name}.half"
                casts.append(_cast(twin.output[i], name, FLOAT))
        self._graph.node.extend([twin, *casts])

    def _half(self, name: str) -> str:
        if name not in self._halves:
            self._halves[name] = f"{name}.half"
            if name in self._weights:
                values = onnx.numpy_helper.to_array(self._weights[name])
                with np.errstate(over="ignore"):  # verification decides whether an overflow matters
                    self._graph.initializer.append(
                        onnx.numpy_helper.from_array(values.astype(np.float16), self._halves[name])
                    )
            else:
                self._graph.node.append(_cast(name, self._halves[name], HALF))
        return self._halves[name]


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], name=f"Cast_{source}_{target}", to=kind)


def _is_convertible(node: onnx.NodeProto, kinds: dict[str, int], version: int) -> bool:
    """Return True for a node that computes with floats and whose schema has fp16."""
    if node.op_type in ISLANDS | TYPED or subgraphs(node) or not node.output:
        return False
    floats = [i for i, name in enumerate(node.output) if kinds.get(name) == FLOAT]
    if node.op_type == "Cast":  # from an integer or boolean; the Cast of a stored fp16 weight computes nothing
        return bool(floats) and kinds.get(node.input[0]) != HALF
    inputs = [
        i for i, name in enumerate(node.input) if kinds.get(name) == FLOAT and _has_half(node, "inputs", i, version)
    ]
    return bool(floats) and bool(inputs) and all(_has_half(node, "outputs", i, version) for i in floats)


def _has_half(node: onnx.NodeProto, parameters: str, i: int, version: int) -> bool:
    """Return True if parameter `i` of the op's `inputs` or `outputs` can be fp16.

    A plugin's call has no schema: it takes and returns either type throughout.
    """
    if node.domain:
        return True
    schema = onnx.defs.get_schema(node.op_type, version, "")
    declared = list(getattr(schema, parameters))
    kind = declared[min(i, len(declared) - 1)].type_str
    allowed = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == kind), [kind])
    return "tensor(float16)" in allowed
