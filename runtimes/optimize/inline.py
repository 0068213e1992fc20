"""Inlining: every function of ours becomes the standard ops of its body, unless a plugin of the target serves it.

What is left is what the oldest parsers read: constants are initializers, CastLike is a Cast, every node has a name,
and no call ends in inputs that are not given. A product of weights alone is made here, once: ONNX Runtime makes none of
fp16 when it loads a graph, and TensorRT-RTX none at all, so each step would make it again.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx
import onnx.inliner

from edge_attn.errors import BundleError
from edge_attn.runtimes.onnx_graph import Constants, constant, nodes, prune, types


def inline(model: onnx.ModelProto, plugins: Set[str] = frozenset()) -> onnx.ModelProto:
    """`model` without the functions that `plugins` (names of ops) does not hold; of the others, call and body stay."""
    served = [(function.domain, function.name) for function in model.functions if function.name in plugins]
    try:
        made = onnx.inliner.inline_selected_functions(model, served, exclude=True)
    except RuntimeError as error:
        raise BundleError(f"the functions of the graph {model.graph.name} cannot be inlined: {error}") from error
    kept = {function.domain for function in made.functions} | {node.domain for node in nodes(made.graph)}
    for entry in [entry for entry in made.opset_import if entry.domain not in ("", "ai.onnx", *kept)]:
        made.opset_import.remove(entry)
    for node in nodes(made.graph):
        while node.input and not node.input[-1]:
            node.input.pop()
    _constants_to_initializers(made)
    _without_cast_like(made)
    _products_to_initializers(made)
    prune(made)
    for node in nodes(made.graph):
        if not node.name:
            node.name = f"{node.op_type}_{next(filter(None, node.output), '')}"
    del made.graph.value_info[:]
    return made


def without_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` as a parser with the plugins wants it: calls without bodies, so that no version prefers the body."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.functions[:]
    return made


def _constants_to_initializers(model: onnx.ModelProto) -> None:
    left = []
    for node in model.graph.node:
        value = constant(node)
        if value is None:
            left.append(node)
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(left)


def _products_to_initializers(model: onnx.ModelProto) -> None:
    constants = Constants(model)
    left = []
    for node in model.graph.node:
        is_product = node.op_type == "MatMul" and not node.domain
        a, b = map(constants.get, node.input) if is_product else (None, None)
        if a is None or b is None:
            left.append(node)
        else:
            try:
                product = np.matmul(a, b, dtype=np.float64).astype(a.dtype)
            except ValueError as error:
                raise BundleError(
                    f"the graph {model.graph.name} is not valid ONNX: {node.name or node.output[0]!r} multiplies "
                    f"weights of {a.shape} and {b.shape}"
                ) from error
            model.graph.initializer.append(onnx.numpy_helper.from_array(product, node.output[0]))
            constants = Constants(model)  # one more, for the products of products
    del model.graph.node[:]
    model.graph.node.extend(left)


def _without_cast_like(model: onnx.ModelProto) -> None:
    """The type that a CastLike takes from its second input is known once nothing is a function any more."""
    if not any(node.op_type == "CastLike" for node in model.graph.node):
        return
    kinds, constants = types(model), Constants(model)
    left = []
    for node in model.graph.node:
        if node.op_type != "CastLike" or node.domain or node.input[1] not in kinds:
            left.append(node)
            continue
        kind = kinds[node.input[1]]
        value = constants.get(node.input[0])
        if value is None:
            left.append(onnx.helper.make_node("Cast", node.input[:1], node.output, name=node.name, to=kind))
        else:
            cast = value.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
            model.graph.initializer.append(onnx.numpy_helper.from_array(cast, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(left)
