"""Compute what depends on weights alone: runtimes and quantizers read weights only where they are initializers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

KINDS = {"Concat", "Split", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Slice", "Gather", "Add", "MatMul", "Cast"}
"""Ops that are computed: those that rearrange weights, and sums and products of them."""
MAX_SIZE = 1 << 24
"""Maximum entries of a result."""


def fold_constants(model: onnx.ModelProto) -> int:
    """Replace nodes of KINDS whose inputs are all constant by their results; return their number."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    values: dict[str, np.ndarray] = {}

    def constant(name: str) -> np.ndarray | None:
        if name not in values and name in stored:
            values[name] = onnx.numpy_helper.to_array(stored[name])
        return values.get(name)

    nodes: list[onnx.NodeProto] = []
    computed: list[tuple[str, np.ndarray]] = []
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain and node.attribute[0].name == "value":
            values[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        inputs = {name: constant(name) for name in node.input if name}
        if node.domain or node.op_type not in KINDS or not inputs or any(v is None for v in inputs.values()):
            nodes.append(node)
            continue
        model_of_node = onnx.helper.make_model(_graph_of(node), opset_imports=model.opset_import)
        results = [np.asarray(value) for value in ReferenceEvaluator(model_of_node).run(None, inputs)]
        if sum(result.size for result in results) > MAX_SIZE:
            nodes.append(node)
            continue
        computed += zip(node.output, results, strict=True)
        values.update(zip(node.output, results, strict=True))
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    used |= {name for node in nodes for name in _captured(node)}
    del graph.node[:]
    graph.node.extend(nodes)
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    initializers += [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in computed if name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    return len(computed)


def _graph_of(node: onnx.NodeProto) -> onnx.GraphProto:
    inputs = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(node.input) if name]
    return onnx.helper.make_graph([node], "node", inputs, [onnx.ValueInfoProto(name=name) for name in node.output])


def _captured(node: onnx.NodeProto) -> set[str]:
    """Return the names that the subgraphs of a node use."""
    graphs = [graph for attribute in node.attribute for graph in (*attribute.graphs, attribute.g)]
    inner = [part for graph in graphs for part in graph.node]
    names = {name for part in inner for name in (*part.input, *_captured(part))}
    return names | {output.name for graph in graphs for output in graph.output}
