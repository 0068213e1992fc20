"""Lower torch's custom ops to nodes of our domain, with function bodies that any ONNX runtime can run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import onnxscript

from edge_attn.errors import ExportError
from edge_attn.models.layers import torch_ops
from edge_attn.ops import DOMAIN, DOMAIN_VERSION, OPSET, Op
from edge_attn.registry import OPS, resolve

PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
"""Attributes of every call, so that TensorRT uses a plugin of ours where one is registered."""


def op(name: str) -> Op:
    """Return the definition of the op `name`."""
    definition: Op = resolve("op", OPS, name)
    return definition


@functools.cache
def register_schemas() -> None:
    """Register a schema for each op of our domain, so that the checker of onnx is strict about them."""
    for name in OPS:
        definition = op(name)
        kinds = {float: onnx.defs.OpSchema.AttrType.FLOAT, int: onnx.defs.OpSchema.AttrType.INT}
        attributes = [
            onnx.defs.OpSchema.Attribute(
                key, kinds.get(type(value), onnx.defs.OpSchema.AttrType.STRING), required=False
            )
            for key, value in {**definition.attributes, **PLUGIN_ATTRIBUTES}.items()
        ]
        onnx.defs.register_schema(
            onnx.defs.OpSchema(
                name,
                DOMAIN,
                DOMAIN_VERSION,
                inputs=[onnx.defs.OpSchema.FormalParameter(key, kind) for key, kind in definition.inputs.items()],
                outputs=[onnx.defs.OpSchema.FormalParameter(key, "T") for key in definition.outputs],
                type_constraints=[("T", ["tensor(float)", "tensor(double)", "tensor(float16)"], "")],
                attributes=attributes,
            )
        )


def translations() -> dict[Any, Callable[..., Any]]:
    """Return the translation table for `torch.onnx.export`: each torch op of ours becomes one node of our domain."""
    register_schemas()
    opset = onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION)

    def translation(definition: Op) -> Callable[..., Any]:
        def translate(*arguments: Any) -> Any:
            tensors, values = arguments[: len(definition.inputs)], arguments[len(definition.inputs) :]
            attributes = dict(zip(definition.attributes, values, strict=True))
            return getattr(opset, definition.name)(*tensors, **attributes, **PLUGIN_ATTRIBUTES)

        return translate

    return {overload: translation(op(name)) for name, overload in torch_ops.REGISTERED.items()}


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of the graph and of its subgraphs (the branches of an If, the body of a Loop)."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (*attribute.graphs, attribute.g):
                yield from nodes(subgraph)


def attach_functions(model: onnx.ModelProto) -> None:
    """Add the function body of each op of ours that the model calls.

    Raises:
        ExportError: the model calls an op of our domain that does not exist.
    """
    called = {node.op_type for node in nodes(model.graph) if node.domain == DOMAIN}
    unknown = sorted(called - OPS.keys())
    if unknown:
        raise ExportError(f"the graph calls {DOMAIN}::{unknown[0]}, which is not an op of this version")
    del model.functions[:]
    model.functions.extend(onnx.parser.parse_function(op(name).function_text()) for name in sorted(called))
    domains = {entry.domain for entry in model.opset_import}
    if called and DOMAIN not in domains:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION))


def op_model(name: str, dtype: int, shapes: dict[str, tuple[Any, ...]], **attributes: Any) -> onnx.ModelProto:
    """Return a model that calls one op of ours, for conformance tests and bug reports.

    Args:
        name: name of the op.
        dtype: element type of its tensors of type T, as in `onnx.TensorProto`.
        shapes: shape of each input; a string is a dynamic axis.
        attributes: attributes of the call.
    """
    definition = op(name)
    types = {"T": dtype, "tensor(bool)": onnx.TensorProto.BOOL, "tensor(int64)": onnx.TensorProto.INT64}
    node = onnx.helper.make_node(
        name, list(definition.inputs), list(definition.outputs), domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES
    )
    graph = onnx.helper.make_graph(
        [node],
        name,
        [onnx.helper.make_tensor_value_info(key, types[kind], shapes[key]) for key, kind in definition.inputs.items()],
        [onnx.helper.make_tensor_value_info(key, dtype, None) for key in definition.outputs],
    )
    model = onnx.helper.make_model(
        graph,
        ir_version=10,
        opset_imports=[onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
    )
    attach_functions(model)
    return model
