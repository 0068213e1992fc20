"""A row of a table times constant weights is a row of the table times those weights, which is made once.

A step looks its last symbol up in the embeddings and multiplies it with weights. Here the product of all embeddings
with these weights is written into the graph instead; whoever loads it folds it into one table, and the step looks up.
"""

from __future__ import annotations

import onnx

LARGEST = 1 << 23
"""Entries of a table, at most: 32 MB in fp32. A larger one would cost a device more memory than it saves time."""


def look_up_products(model: onnx.ModelProto) -> int:
    """Turns each MatMul(Gather(table, ids), weights) into Gather(MatMul(table, weights), ids); gives their number."""
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
    nodes, turned = [], 0
    for node in graph.node:
        lookup = lookups.get(node.input[0]) if node.op_type == "MatMul" else None
        weights = shapes.get(node.input[1], ()) if lookup else ()
        if lookup is None or len(weights) != 2 or shapes[lookup.input[0]][0] * weights[1] > LARGEST:
            nodes.append(node)
            continue
        turned += 1
        table = f"{node.output[0]}.table"
        nodes.append(onnx.helper.make_node("MatMul", [lookup.input[0], node.input[1]], [table], f"{node.name}.table"))
        nodes.append(onnx.helper.make_node("Gather", [table, lookup.input[1]], list(node.output), node.name, axis=0))
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.output[0] in used or node.output[0] not in lookups)
    return turned


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
