"""From torch's custom ops to nodes of our domain, and from those to functions that any ONNX runtime can run."""

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

CALL = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
"""On every call, so that TensorRT finds a plugin of ours where one is registered."""


def op(name: str) -> Op:
    found: Op = resolve("op", OPS, name)
    return found


@functools.cache
def register_schemas() -> None:
    """Tells onnx about every op of our domain; its checker is then strict about them."""
    for name in OPS:
        declared = op(name)
        kinds = {float: onnx.defs.OpSchema.AttrType.FLOAT, int: onnx.defs.OpSchema.AttrType.INT}
        attributes = [
            onnx.defs.OpSchema.Attribute(
                key, kinds.get(type(value), onnx.defs.OpSchema.AttrType.STRING), required=False
            )
            for key, value in {**declared.attributes, **CALL}.items()
        ]
        onnx.defs.register_schema(
            onnx.defs.OpSchema(
                name,
                DOMAIN,
                DOMAIN_VERSION,
                inputs=[onnx.defs.OpSchema.FormalParameter(key, kind) for key, kind in declared.inputs.items()],
                outputs=[onnx.defs.OpSchema.FormalParameter(key, "T") for key in declared.outputs],
                type_constraints=[("T", ["tensor(float)", "tensor(double)", "tensor(float16)"], "")],
                attributes=attributes,
            )
        )


def translations() -> dict[Any, Callable[..., Any]]:
    """For `torch.onnx.export`: each of our torch ops becomes one node of our domain."""
    register_schemas()
    ours = onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION)

    def translation(declared: Op) -> Callable[..., Any]:
        def translate(*given: Any) -> Any:
            tensors, attributes = given[: len(declared.inputs)], given[len(declared.inputs) :]
            named = dict(zip(declared.attributes, attributes, strict=True))
            return getattr(ours, declared.name)(*tensors, **named, **CALL)

        return translate

    return {overload: translation(op(name)) for name, overload in torch_ops.REGISTERED.items()}


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graph and of the graphs inside it (the branches of an If, the body of a Loop)."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, attribute.g):
                yield from nodes(inner)


def attach_functions(model: onnx.ModelProto) -> None:
    """Gives the model the body of each of our ops that it calls."""
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
    """A model of one call of our op, all axes dynamic where `shapes` names them: for conformance tests and repros."""
    declared = op(name)
    types = {"T": dtype, "tensor(bool)": onnx.TensorProto.BOOL, "tensor(int64)": onnx.TensorProto.INT64}
    node = onnx.helper.make_node(
        name, list(declared.inputs), list(declared.outputs), domain=DOMAIN, **attributes, **CALL
    )
    graph = onnx.helper.make_graph(
        [node],
        name,
        [onnx.helper.make_tensor_value_info(key, types[kind], shapes[key]) for key, kind in declared.inputs.items()],
        [onnx.helper.make_tensor_value_info(key, dtype, None) for key in declared.outputs],
    )
    model = onnx.helper.make_model(
        graph,
        ir_version=10,
        opset_imports=[onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
    )
    attach_functions(model)
    return model
