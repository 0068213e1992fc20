"""Checks for graphs whose meaning TensorRT would silently change, before the parser runs and in the parsed network.

Each check returns one text for each fault. A graph without faults may be built.
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
"""numpy's name of each data type of TensorRT."""


def lint_plugins(parser: OnnxParser, plugins: Iterable[str]) -> list[str]:
    """Return the ops of plugins that TensorRT would replace by its own: it compares names, and ignores the domain."""
    return [f"the op {op} would become TensorRT's own {op}" for op in plugins if parser.supports_operator(op)]


def lint_network(tensorrt: TensorRT, network: INetworkDefinition, spec: GraphSpec) -> list[str]:
    """Return faults: unused inputs, inputs and outputs that differ from the spec, loops of data-dependent length."""
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
            faults.append(f"the input {tensor.name} is used by no layer, so its value would be ignored")
        if tensor.is_shape_tensor:
            faults.append(f"the input {tensor.name} determines a shape, so it would have to be on the host")
    for kind, tensors, specs in (("input", inputs, spec.inputs), ("output", outputs, spec.outputs)):
        actual = {tensor.name: _describe(tensor) for tensor in tensors}
        expected = {tensor.name: f"{tensor.dtype} of rank {len(tensor.shape)}" for tensor in specs}
        for name in [*expected, *(name for name in actual if name not in expected)]:
            if actual.get(name) != expected.get(name):
                faults.append(
                    f"the {kind} {name} is {actual.get(name, 'absent')}, expected {expected.get(name, 'none')}"
                )
    return faults + _lint_loops(tensorrt, layers)


def _describe(tensor: ITensor) -> str:
    dtype = tensor.dtype.name
    return f"{DTYPES.get(dtype, dtype)} of rank {len(tensor.shape)}"


def _lint_loops(tensorrt: TensorRT, layers: list[ILayer]) -> list[str]:
    """Return outputs of loops that may end early. They have the length of the trip count in TensorRT only."""
    trt = tensorrt.trt
    producers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    loop: ILoop
    early_ending = set()
    for layer in layers:
        if layer.type == trt.LayerType.TRIP_LIMIT:
            layer.__class__ = trt.ITripLimitLayer  # the bindings return every layer as ILayer
            limit: ITripLimitLayer = layer
            loop = limit.loop
            if limit.kind == trt.TripLimit.WHILE and not _is_constant(tensorrt, limit.get_input(0), producers, set()):
                early_ending.add(loop.name)
    faults = []
    for layer in layers:
        if layer.type == trt.LayerType.LOOP_OUTPUT:
            layer.__class__ = trt.ILoopOutputLayer
            output: ILoopOutputLayer = layer
            loop = output.loop
            if output.kind != trt.LoopOutput.LAST_VALUE and loop.name in early_ending:
                faults.append(
                    f"the loop of {output.get_output(0).name} may end early, and in TensorRT this output has the "
                    f"length of the trip count; make the loop's length constant"
                )
    return faults


def _is_constant(tensorrt: TensorRT, tensor: ITensor, producers: dict[str, ILayer], visited: set[str]) -> bool:
    """Return whether a loop's condition is constant. A counted loop passes a constant from step to step."""
    trt = tensorrt.trt
    if tensor.name in visited:
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
        _is_constant(tensorrt, source, producers, {*visited, tensor.name}) for source in sources if source is not None
    )


def mark_attention_decomposable(tensorrt: TensorRT, network: INetworkDefinition) -> int:
    """Mark attention layers in fp32, which have no fused kernel, as decomposable. Return their number."""
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
