"""Fold an embedding lookup and the product with constant weights into one lookup.

A step looks its last symbol up in the embedding table and multiplies the row with weights. Here the graph multiplies
the whole table with these weights instead. The runtime computes that product once, when it loads the graph, and each
step only looks a row up.
"""

from __future__ import annotations

import onnx

MAX_TABLE_SIZE = 1 << 23
"""Maximum entries of a folded table: 32 MB in fp32. A larger one costs a device more memory than it saves time."""


def fold_embedding_matmul(model: onnx.ModelProto) -> int:
    """Replace each MatMul(Gather(table, ids), weights) by Gather(MatMul(table, weights), ids); return their number."""
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]][::-1]
    lookups = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Gather" and len(shapes.get(node.input[0], ())) == 2 and not _axis(node)
    }
    nodes, folded = [], 0
    for node in graph.node:
        lookup = lookups.get(node.input[0]) if node.op_type == "MatMul" else None
        weights = shapes.get(node.input[1], ()) if lookup else ()
        if lookup is None or len(weights) != 2 or shapes[lookup.input[0]][0] * weights[1] > MAX_TABLE_SIZE:
            nodes.append(node)
            continue
        folded += 1
        table = f"{node.output[0]}.table"
        nodes.append(onnx.helper.make_node("MatMul", [lookup.input[0], node.input[1]], [table], f"{node.name}.table"))
        nodes.append(onnx.helper.make_node("Gather", [table, lookup.input[1]], list(node.output), node.name, axis=0))
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.output[0] in used or node.output[0] not in lookups)
    return folded


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
