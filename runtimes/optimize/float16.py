"""fp16 as explicit casts: one graph that ONNX Runtime, TensorRT 10 and strongly typed TensorRT 11 read alike.

Inputs and outputs keep their types. Each lowered node computes in fp16; every other one is an island of fp32 with a
Cast at its shores, one a tensor. A weight that is stored as fp16 is used as it stands.
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
"""Ops that stay fp32: what sums over long axes, what overflows early, and what picks tokens."""
TYPED = frozenset({"Constant", "ConstantOfShape", "EyeLike", "QuantizeLinear", "DequantizeLinear", "Range"})
"""Ops whose type is not that of their inputs."""


def lowerable(model: onnx.ModelProto) -> list[str]:
    """The nodes that may compute in fp16, each by the name of its first output."""
    kinds, version = types(model), opset(model)
    return [node.output[0] for node in model.graph.node if _may(node, kinds, version)]


def half(model: onnx.ModelProto, lowered: Set[str]) -> onnx.ModelProto:
    """`model` (inlined) with the nodes `lowered`, by the names of their first outputs, in fp16."""
    kinds, version = types(model), opset(model)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.value_info[:]
    writer = _Writer(made.graph)
    for node in model.graph.node:
        if node.output[0] in lowered and _may(node, kinds, version):
            writer.add_half(node, kinds, version)
        else:
            writer.add(node, kinds)
    prune(made)
    return made


class _Writer:
    """Writes a graph's nodes again; a tensor's fp32 form keeps its name, its fp16 form is made where asked for."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._halves: dict[str, str] = {}

    def add(self, node: onnx.NodeProto, kinds: dict[str, int]) -> None:
        self._graph.node.append(node)
        if node.op_type == "Cast" and kinds.get(node.input[0]) == HALF and kinds.get(node.output[0]) == FLOAT:
            self._halves[node.output[0]] = node.input[0]

    def add_half(self, node: onnx.NodeProto, kinds: dict[str, int], version: int) -> None:
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        for i, name in enumerate(node.input):
            if kinds.get(name) == FLOAT and _takes_half(node, i, version):
                twin.input[i] = self._half(name)
        for attribute in twin.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = HALF
        back = []
        for i, name in enumerate(node.output):
            if kinds.get(name) == FLOAT:
                twin.output[i] = self._halves[name] = f"{name}.half"
                back.append(_cast(twin.output[i], name, FLOAT))
        self._graph.node.extend([twin, *back])

    def _half(self, name: str) -> str:
        if name not in self._halves:
            self._halves[name] = f"{name}.half"
            if name in self._weights:
                values = onnx.numpy_helper.to_array(self._weights[name])
                with np.errstate(over="ignore"):  # the verification of the graph says whether that matters
                    self._graph.initializer.append(
                        onnx.numpy_helper.from_array(values.astype(np.float16), self._halves[name])
                    )
            else:
                self._graph.node.append(_cast(name, self._halves[name], HALF))
        return self._halves[name]


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], name=f"Cast_{source}_{target}", to=kind)


def _may(node: onnx.NodeProto, kinds: dict[str, int], version: int) -> bool:
    """Whether a node computes with floats, and has a writing in fp16."""
    if node.op_type in ISLANDS | TYPED or subgraphs(node) or not node.output:
        return False
    floats = [i for i, name in enumerate(node.output) if kinds.get(name) == FLOAT]
    if node.op_type == "Cast":  # of a number that is no float; a stored weight's is no computation
        return bool(floats) and kinds.get(node.input[0]) != HALF
    inputs = [i for i, name in enumerate(node.input) if kinds.get(name) == FLOAT and _takes_half(node, i, version)]
    return bool(floats) and bool(inputs) and all(_gives_half(node, i, version) for i in floats)


def _takes_half(node: onnx.NodeProto, i: int, version: int) -> bool:
    schema = _schema(node, version)
    return schema is None or _has_half(schema, schema.inputs, i)


def _gives_half(node: onnx.NodeProto, i: int, version: int) -> bool:
    schema = _schema(node, version)
    return schema is None or _has_half(schema, schema.outputs, i)


def _schema(node: onnx.NodeProto, version: int) -> onnx.defs.OpSchema | None:
    """Of a standard op; a call that a plugin serves takes and gives either type throughout."""
    return None if node.domain else onnx.defs.get_schema(node.op_type, version, "")


def _has_half(schema: onnx.defs.OpSchema, parameters: object, i: int) -> bool:
    declared = list(parameters)  # type: ignore[call-overload]
    kind = declared[min(i, len(declared) - 1)].type_str
    allowed = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == kind), [kind])
    return "tensor(float16)" in allowed
