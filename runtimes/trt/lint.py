"""What TensorRT would silently do otherwise than ONNX says: looked for before the parse, and in the parsed network.

Each lint gives sentences, one a fault; none means that the graph may be built.
"""

from __future__ import annotations

from collections.abc import Iterable

from edge_attn.runtimes.trt.api import (
    IAttentionInputLayer,
    ILayer,
    ILoop,
    ILoopOutputLayer,
    INetworkDefinition,
    ITensor,
    ITripLimitLayer,
    OnnxParser,
    TensorRT,
)
from edge_attn.spec import GraphSpec

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
"""numpy's names of TensorRT's data types."""


def lint_plugins(parser: OnnxParser, plugins: Iterable[str]) -> list[str]:
    """Ops of registered plugins that TensorRT would take for its own: it looks ops up by name, whatever the domain."""
    return [f"the op {op} would be taken for TensorRT's own {op}" for op in plugins if parser.supports_operator(op)]


def lint_network(tensorrt: TensorRT, network: INetworkDefinition, spec: GraphSpec) -> list[str]:
    """Inputs that feed nothing, inputs and outputs other than the bundle's, loops whose length only the data knows."""
    layers: list[ILayer] = [network.get_layer(i) for i in range(network.num_layers)]
    inputs: list[ITensor] = [network.get_input(i) for i in range(network.num_inputs)]
    outputs: list[ITensor] = [network.get_output(i) for i in range(network.num_outputs)]
    read = set()
    for layer in layers:
        for i in range(layer.num_inputs):
            tensor: ITensor = layer.get_input(i)
            if tensor is not None:
                read.add(tensor.name)
    faults = []
    for tensor in inputs:
        if tensor.name not in read:
            faults.append(f"the input {tensor.name} feeds no layer, so what it says would be ignored")
        if tensor.is_shape_tensor:
            faults.append(f"the input {tensor.name} decides a shape, so it would have to stay on the host")
    for kind, found, expected in (("input", inputs, spec.inputs), ("output", outputs, spec.outputs)):
        has = {tensor.name: _described(tensor) for tensor in found}
        wants = {tensor.name: f"{tensor.dtype} of rank {len(tensor.shape)}" for tensor in expected}
        for name in [*wants, *(name for name in has if name not in wants)]:
            if has.get(name) != wants.get(name):
                faults.append(
                    f"the {kind} {name} is {has.get(name, 'absent')}, expected {wants.get(name, 'no such one')}"
                )
    return faults + _loops(tensorrt, layers)


def _described(tensor: ITensor) -> str:
    dtype = tensor.dtype.name
    return f"{DTYPES.get(dtype, dtype)} of rank {len(tensor.shape)}"


def _loops(tensorrt: TensorRT, layers: list[ILayer]) -> list[str]:
    """A loop that may end early gives outputs as long as its trip count in TensorRT, shorter ones in ONNX."""
    trt = tensorrt.trt
    producers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    loop: ILoop
    early = set()
    for layer in layers:
        if layer.type == trt.LayerType.TRIP_LIMIT:
            layer.__class__ = trt.ITripLimitLayer  # the bindings give every layer as a bare ILayer
            limit: ITripLimitLayer = layer
            loop = limit.loop
            if limit.kind == trt.TripLimit.WHILE and not _is_constant(tensorrt, limit.get_input(0), producers, set()):
                early.add(loop.name)
    faults = []
    for layer in layers:
        if layer.type == trt.LayerType.LOOP_OUTPUT:
            layer.__class__ = trt.ILoopOutputLayer
            output: ILoopOutputLayer = layer
            loop = output.loop
            if output.kind != trt.LoopOutput.LAST_VALUE and loop.name in early:
                faults.append(
                    f"the loop of {output.get_output(0).name} may end early, and TensorRT gives that output the length "
                    f"of the trip count; give the loop a fixed length"
                )
    return faults


def _is_constant(tensorrt: TensorRT, tensor: ITensor, producers: dict[str, ILayer], passed: set[str]) -> bool:
    """Does a loop's condition never change? A counted loop passes a constant on from step to step."""
    trt = tensorrt.trt
    if tensor.name in passed:
        return True
    if tensor.name not in producers:
        return False
    layer: ILayer = producers[tensor.name]
    if layer.type == trt.LayerType.CONSTANT:
        return True
    if layer.type not in (trt.LayerType.IDENTITY, trt.LayerType.CAST, trt.LayerType.SHUFFLE, trt.LayerType.RECURRENCE):
        return False
    sources = [layer.get_input(i) for i in range(layer.num_inputs)]
    return all(
        _is_constant(tensorrt, source, producers, {*passed, tensor.name}) for source in sources if source is not None
    )


def make_attention_buildable(tensorrt: TensorRT, network: INetworkDefinition) -> int:
    """Marks attention layers in fp32, which have no fused kernel, as decomposable. Gives how many."""
    marked = 0
    if tensorrt.capability.attention_layer:
        trt = tensorrt.trt
        for i in range(network.num_layers):
            layer: ILayer = network.get_layer(i)
            if layer.type == trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = trt.IAttentionInputLayer
                attention: IAttentionInputLayer = layer
                query: ITensor = attention.get_input(0)
                if query.dtype == trt.DataType.FLOAT:
                    attention.attention.decomposable = True
                    marked += 1
    return marked
