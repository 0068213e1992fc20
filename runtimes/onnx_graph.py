"""Reading an ONNX model as the rewrites need it: its nodes, types and constants; and dropping what nothing reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import numpy as np
import onnx

from edge_attn.errors import BundleError

VALUES = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
"""The attributes of a Constant, beside `value`, that hold numbers."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter writes the modules that a node comes from, outermost first, its own name last."""


def load(data: bytes, where: str) -> onnx.ModelProto:
    """The model in `data`.

    Raises:
        BundleError: it is not valid ONNX; the sentence begins with `where`.
    """
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's errors share no class but Exception
        raise BundleError(f"{where} is not an ONNX graph: {' '.join(str(error).split())}") from error
    return model


def opset(model: onnx.ModelProto) -> int:
    """The version of the standard ops."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graph and of the graphs inside it (the branches of an If, the body of a Loop)."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from nodes(inner)


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [inner for attribute in node.attribute for inner in (attribute.g, *attribute.graphs) if inner.node]


def reads(node: onnx.NodeProto) -> set[str]:
    """The tensors that a node reads, those of the graphs inside it among them."""
    found = {name for name in node.input if name}
    for inner in subgraphs(node):
        found |= {name for item in inner.node for name in reads(item)} | {value.name for value in inner.output}
    return found


def types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor of the graph, by its name.

    Raises:
        BundleError: the types of its nodes do not fit together.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError as error:
        raise BundleError(f"the graph {model.graph.name} is not valid ONNX: {error}") from error
    found = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def module_path(node: onnx.NodeProto) -> str:
    """The torch module that a node comes from, as `model.encoder`; empty if the exporter did not say."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
    try:
        path = ast.literal_eval(scopes)
    except (ValueError, SyntaxError):
        return ""
    return str(path[-2]) if isinstance(path, list) and len(path) > 1 else ""


def module_paths(model: onnx.ModelProto) -> dict[str, str]:
    """Torch module of each named node whose module the exporter recorded."""
    return {node.name: path for node in nodes(model.graph) if node.name and (path := module_path(node))}


def constant(node: onnx.NodeProto) -> np.ndarray | None:
    """The value of a Constant; None of any other node, and of one that holds no numbers.

    Raises:
        BundleError: it has not exactly one attribute.
    """
    if node.op_type != "Constant" or node.domain:
        return None
    if len(node.attribute) != 1:
        raise BundleError(f"the Constant {''.join(node.output)!r} has {len(node.attribute)} attributes, expected 1")
    [attribute] = node.attribute
    found = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        value: np.ndarray = onnx.numpy_helper.to_array(found)
        return value
    return np.array(found, VALUES[attribute.name]) if attribute.name in VALUES else None


class Constants:
    """The values of tensors that no input changes: initializers, and what Cast, Transpose and Identity make of them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inside = [graph for node in nodes(model.graph) for graph in subgraphs(node)]
        self._tensors = {tensor.name: tensor for graph in (model.graph, *inside) for tensor in graph.initializer}
        self._makers = {node.output[0]: node for node in nodes(model.graph) if node.output}

    def get(self, name: str) -> np.ndarray | None:
        if name in self._tensors:
            value: np.ndarray = onnx.numpy_helper.to_array(self._tensors[name])
            return value
        node = self._makers.get(name)
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
    """Drops the nodes and initializers of the graph that nothing reads, in place."""
    graph = model.graph
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted |= reads(node)
            kept.append(node)
    tensors = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(tensors)
