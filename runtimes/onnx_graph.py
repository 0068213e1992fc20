"""Nodes, types and constants of an ONNX model, and removal of what nothing reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import numpy as np
import onnx

from edge_attn.errors import BundleError

VALUES = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
"""Attributes of a Constant, beside `value`, that contain numbers."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata in which torch's exporter records the modules of a node, outermost first, the node's own name last."""


def load(data: bytes, where: str) -> onnx.ModelProto:
    """Return the model in `data`.

    Raises:
        BundleError: it is not valid ONNX; the sentence begins with `where`.
    """
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
        for tensor in _stored_tensors(model):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise ValueError(f"the tensor {tensor.name!r} is in another file")
            onnx.numpy_helper.to_array(tensor)  # the checker does not compare its size with its shape
    except Exception as error:  # protobuf's errors share no class but Exception
        raise BundleError(f"{where} is not an ONNX graph: {' '.join(str(error).split())}") from error
    return model


def _stored_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the initializers of every graph, and the tensors in attributes of nodes."""
    inside = [inner for node in nodes(model.graph) for inner in subgraphs(node)]
    for graph in (model.graph, *inside):
        yield from graph.initializer
    functions = (node for function in model.functions for node in function.node)
    for node in (*nodes(model.graph), *functions):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard ops."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of the graph and of the graphs inside it (the branches of an If, the body of a Loop)."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from nodes(inner)


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [inner for attribute in node.attribute for inner in (attribute.g, *attribute.graphs) if inner.node]


def reads(node: onnx.NodeProto) -> set[str]:
    """Return the tensors that a node reads, with those of the graphs inside it."""
    names = {name for name in node.input if name}
    for inner in subgraphs(node):
        names |= {name for item in inner.node for name in reads(item)} | {value.name for value in inner.output}
    return names


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor of the graph, by its name.

    Raises:
        BundleError: the types of its nodes do not fit together.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError as error:
        raise BundleError(f"the graph {model.graph.name} is not valid ONNX: {error}") from error
    kinds = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        kinds[value.name] = value.type.tensor_type.elem_type
    return kinds


def module_path(node: onnx.NodeProto) -> str:
    """Return the torch module of a node, as `model.encoder`; empty if the exporter did not record it."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
    try:
        path = ast.literal_eval(scopes)
    except (ValueError, SyntaxError):
        return ""
    return str(path[-2]) if isinstance(path, list) and len(path) > 1 else ""


def module_paths(model: onnx.ModelProto) -> dict[str, str]:
    """Return the torch module of each named node whose module the exporter recorded."""
    return {node.name: path for node in nodes(model.graph) if node.name and (path := module_path(node))}


def constant(node: onnx.NodeProto) -> np.ndarray | None:
    """Return the value of a Constant; None for any other node, and for one that contains no numbers.

    Raises:
        BundleError: it does not have exactly one attribute.
    """
    if node.op_type != "Constant" or node.domain:
        return None
    if len(node.attribute) != 1:
        raise BundleError(f"the Constant {''.join(node.output)!r} has {len(node.attribute)} attributes, expected 1")
    [attribute] = node.attribute
    content = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        value: np.ndarray = onnx.numpy_helper.to_array(content)
        return value
    return np.array(content, VALUES[attribute.name]) if attribute.name in VALUES else None


class Constants:
    """Values of tensors that no input changes: initializers, and Cast, Transpose and Identity of them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inside = [graph for node in nodes(model.graph) for graph in subgraphs(node)]
        self._tensors = {tensor.name: tensor for graph in (model.graph, *inside) for tensor in graph.initializer}
        self._producers = {node.output[0]: node for node in nodes(model.graph) if node.output}

    def get(self, name: str) -> np.ndarray | None:
        if name in self._tensors:
            value: np.ndarray = onnx.numpy_helper.to_array(self._tensors[name])
            return value
        node = self._producers.get(name)
        if node is None or node.domain or node.op_type not in ("Cast", "Transpose", "Identity"):
            return None if node is None else constant(node)
        inner = self.get(node.input[0])
        if inner is None or node.op_type == "Identity":
            return inner
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type == "Transpose":
            return np.transpose(inner, attributes.get("perm"))
        return inner.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))


def prune(model: onnx.ModelProto) -> None:
    """Remove the nodes and initializers of the graph that nothing reads, in place."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    reversed_nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed |= reads(node)
            reversed_nodes.append(node)
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(reversed_nodes))
    graph.initializer.extend(tensors)
