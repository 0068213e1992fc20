"""Inlining: every function of ours becomes the standard ops of its body, unless a plugin of the target replaces it.

The result is what the oldest parsers read: constants are initializers, CastLike is a Cast, every node has a name, no
call ends in empty inputs. A product of weights alone is computed here, once: ONNX Runtime folds no fp16 product when it
loads a graph, and TensorRT-RTX none at all, so each step would compute it again.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx
import onnx.inliner

from edge_attn.errors import BundleError
from edge_attn.runtimes.onnx_graph import Constants, constant, nodes, prune, types


def inline(model: onnx.ModelProto, plugins: Set[str] = frozenset()) -> onnx.ModelProto:
    """Return `model` without functions, except those of the ops in `plugins`, whose calls and bodies stay.

    Raises:
        BundleError: the functions cannot be inlined, or the graph is not valid ONNX.
    """
    excluded = [(function.domain, function.name) for function in model.functions if function.name in plugins]
    try:
        result = onnx.inliner.inline_selected_functions(model, excluded, exclude=True)
    except RuntimeError as error:
        raise BundleError(f"the functions of the graph {model.graph.name} cannot be inlined: {error}") from error
    used = {function.domain for function in result.functions} | {node.domain for node in nodes(result.graph)}
    for entry in [entry for entry in result.opset_import if entry.domain not in ("", "ai.onnx", *used)]:
        result.opset_import.remove(entry)
    for node in nodes(result.graph):
        while node.input and not node.input[-1]:
            node.input.pop()
    _constants_to_initializers(result)
    _replace_cast_like(result)
    _products_to_initializers(result)
    prune(result)
    for node in nodes(result.graph):
        if not node.name:
            node.name = f"{node.op_type}_{next(filter(None, node.output), '')}"
    del result.graph.value_info[:]
    return result


def without_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` without function bodies, so that no version of a parser prefers a body to the plugin."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.functions[:]
    return result


def _constants_to_initializers(model: onnx.ModelProto) -> None:
    remaining = []
    for node in model.graph.node:
        value = constant(node)
        if value is None:
            remaining.append(node)
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(remaining)


def _products_to_initializers(model: onnx.ModelProto) -> None:
    """Multiply weights once and store the product.

    Raises:
        BundleError: the shapes of two weights do not fit together.
    """
    constants = Constants(model)
    remaining = []
    for node in model.graph.node:
        is_product = node.op_type == "MatMul" and not node.domain
        a, b = map(constants.get, node.input) if is_product else (None, None)
        if a is None or b is None:
            remaining.append(node)
        else:
            try:
                product = np.matmul(a, b, dtype=np.float64).astype(a.dtype)
            except ValueError as error:
                raise BundleError(
                    f"the graph {model.graph.name} is not valid ONNX: {node.name or node.output[0]!r} multiplies "
                    f"weights of {a.shape} and {b.shape}"
                ) from error
            model.graph.initializer.append(onnx.numpy_helper.from_array(product, node.output[0]))
            constants = Constants(model)  # with the new one, for products of products
    del model.graph.node[:]
    model.graph.node.extend(remaining)


def _replace_cast_like(model: onnx.ModelProto) -> None:
    """Replace each CastLike by a Cast: the type of its second input is known once every function is inlined."""
    if not any(node.op_type == "CastLike" for node in model.graph.node):
        return
    kinds, constants = types(model), Constants(model)
    remaining = []
    for node in model.graph.node:
        if node.op_type != "CastLike" or node.domain or node.input[1] not in kinds:
            remaining.append(node)
            continue
        kind = kinds[node.input[1]]
        value = constants.get(node.input[0])
        if value is None:
            remaining.append(onnx.helper.make_node("Cast", node.input[:1], node.output, name=node.name, to=kind))
        else:
            cast = value.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
            model.graph.initializer.append(onnx.numpy_helper.from_array(cast, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(remaining)
