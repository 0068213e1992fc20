"""Graphs for ONNX runtimes and tools that take neither functions nor lengths of sequences, such as onnx.reference.

Functions become the standard ops of their bodies, and constants initializers. A recurrent node with lengths becomes one
node a direction without them: a reverse direction reads each row reversed within its length, what lies past a length is
set to zero, and the last state is the output at the last element. An LSTM keeps its cell past a length, as one more
input, which is 1 there, closes the input gate and opens the forget gate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx.helper import get_attribute_value, make_node

from edge_attn.export.fold_constants import fold_constants

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
CLOSED = 64.0
"""Input of a sigmoid that makes it 1, or 0 within 1e-27; its exponential is finite in fp32."""
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` with standard ops alone, and without lengths at recurrent nodes."""
    result = onnx.inliner.inline_local_functions(model)
    for entry in [entry for entry in result.opset_import if entry.domain not in ("", "ai.onnx")]:
        result.opset_import.remove(entry)
    del result.functions[:]
    del result.graph.value_info[:]
    _constants_to_initializers(result.graph)
    _replace_cast_like(result)
    _sum_booleans(result.graph)
    nodes = list(result.graph.node)
    del result.graph.node[:]
    for number, node in enumerate(nodes):
        has_lengths = node.op_type in GATES and not node.domain and len(node.input) > 4 and node.input[4]
        name = f"{node.op_type}_{number}"
        result.graph.node.extend(_Unrolled(result.graph, node, name).nodes if has_lengths else [node])
    fold_constants(result)
    return result


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    nodes = []
    for node in graph.node:
        attribute = node.attribute[0] if node.op_type == "Constant" and not node.domain else None
        if attribute is None or "string" in attribute.name or attribute.name == "sparse_value":
            nodes.append(node)
            continue
        value = get_attribute_value(attribute)
        if attribute.name == "value":
            array = onnx.numpy_helper.to_array(value)
        else:
            array = np.array(value, np.float32 if "float" in attribute.name else np.int64)
        graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
    del graph.node[:]
    graph.node.extend(nodes)


def _replace_cast_like(model: onnx.ModelProto) -> None:
    """Replace each CastLike by a Cast: tools that read shapes do not know it."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    kinds.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    for node in model.graph.node:
        if node.op_type == "CastLike" and not node.domain and kinds.get(node.input[1]):
            kind = kinds[node.input.pop()]
            node.op_type = "Cast"
            node.attribute.append(onnx.helper.make_attribute("to", kind))


def _sum_booleans(graph: onnx.GraphProto) -> None:
    """Count, in place of their maximum, integers that are booleans: ONNX Runtime's reader of shapes knows the sum."""
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        source = producers.get(node.input[0]) if node.op_type == "ReduceMax" else None
        users = [user for user in graph.node if node.output[0] in user.input]
        to_bool = users and all(_cast_type(user) == onnx.TensorProto.BOOL for user in users)
        if source is not None and _cast_type(source) == onnx.TensorProto.INT32 and to_bool:
            node.op_type = "ReduceSum"


def _cast_type(node: onnx.NodeProto) -> int:
    return int(get_attribute_value(node.attribute[0])) if node.op_type == "Cast" else 0


class _Unrolled:
    """The nodes in place of one recurrent node with lengths."""

    def __init__(self, graph: onnx.GraphProto, node: onnx.NodeProto, name: str) -> None:
        self._graph, self._node, self._name = graph, node, name
        self.nodes: list[onnx.NodeProto] = []
        weights = {tensor.name: tensor for tensor in graph.initializer}
        r = weights.get(node.input[2])
        self._dtype = np.dtype(np.float32) if r is None else onnx.numpy_helper.to_array(r).dtype
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._build()

    def _add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{self._name}.{len(self.nodes)}"
        self.nodes.append(make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def _constant(self, value: Any, dtype: Any = np.int64) -> str:
        array = np.array(value, dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"{self._name}.constant.{len(self._constants)}"
            self._graph.initializer.append(onnx.numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def _build(self) -> None:
        attributes = {a.name: get_attribute_value(a) for a in self._node.attribute}
        direction = attributes.pop("direction", b"forward").decode()
        activations = attributes.pop("activations", None)
        x, w, r, b, lengths, *states = [*self._node.input, *[""] * (8 - len(self._node.input))][:7]
        lengths = self._add("Cast", lengths, to=onnx.TensorProto.INT64)  # (batch)
        steps = self._add("Squeeze", self._add("Shape", x, start=0, end=1), self._constant([0]))
        time = self._add("Range", self._constant(0), steps, self._constant(1))
        time = self._add("Unsqueeze", time, self._constant([1]))  # (src, 1)
        real = self._add("Less", time, lengths)  # (src, batch)
        last = self._add("Equal", time, self._add("Sub", lengths, self._constant(1)))
        ends = self._constant([1, 3])
        real, last = (self._add("Unsqueeze", mask, ends) for mask in (real, last))  # (src, 1, batch, 1)
        if self._node.op_type == "LSTM":
            past = self._add("Cast", self._add("Not", real), to=onnx.helper.np_dtype_to_tensor_dtype(self._dtype))
            x = self._add("Concat", x, self._add("Squeeze", past, self._constant([1])), axis=2)
        results: list[list[str]] = []
        for index, reverse in enumerate(DIRECTIONS[direction]):
            own = [self._part(value, index) for value in (w, r, b, *states)]
            if self._node.op_type == "LSTM":
                own[0] = self._add("Concat", own[0], self._gates(attributes["hidden_size"]), axis=2)
            results.append(self._direction(x, own, lengths, real, last, reverse, attributes, activations, index))
        names = [*self._node.output, "", ""][:3]
        for name, parts, axis in zip(names, zip(*results, strict=True), (1, 0, 0), strict=False):
            if name:
                self.nodes.append(make_node("Concat", list(parts), [name], f"{name}.join", axis=axis))

    def _part(self, value: str, index: int) -> str:
        """Return one direction of weights or states, or "" for what is left out."""
        return value and self._add("Slice", value, *(self._constant([i]) for i in (index, index + 1, 0)))

    def _gates(self, hidden: int) -> str:
        """Return the weights (1, 4 * hidden, 1) of the input that is 1 past a length; gates are i, o, f, c."""
        column = np.repeat([-CLOSED, 0, CLOSED, 0], hidden)
        return self._constant(column[None, :, None], self._dtype)

    def _direction(
        self,
        x: str,
        own: list[str],
        lengths: str,
        real: str,
        last: str,
        reverse: bool,
        attributes: dict[str, Any],
        activations: list[bytes] | None,
        index: int,
    ) -> list[str]:
        if reverse:
            x = self._add("ReverseSequence", x, lengths, time_axis=0, batch_axis=1)
        settings = dict(attributes)
        if activations:
            each = len(activations) // len(DIRECTIONS["bidirectional"]) if index else len(activations)
            settings["activations"] = activations[index * each : index * each + max(1, each)]
        w, r, b, *states = own
        kinds = ("y", "h", "c") if self._node.op_type == "LSTM" else ("y", "h")
        outputs = [f"{self._name}.{index}.{kind}" for kind in kinds]
        inputs = [x, w, r, b, "", *states]
        while not inputs[-1]:
            inputs.pop()
        self.nodes.append(make_node(self._node.op_type, inputs, outputs, outputs[0], **settings))
        zero = self._constant(0, self._dtype)
        y = self._add("Where", real, outputs[0], zero)  # (src, 1, batch, hidden)
        ends = self._add("Where", last, outputs[0], zero)
        h = self._add("ReduceSum", ends, self._constant([0]), keepdims=0)  # (1, batch, hidden)
        if reverse:
            y = self._add("Squeeze", y, self._constant([1]))
            y = self._add("ReverseSequence", y, lengths, time_axis=0, batch_axis=1)
            y = self._add("Unsqueeze", y, self._constant([1]))
        return [y, h, *outputs[2:]]
