"""From a torch module to an ONNX model: torch.export, then nodes of our domain, then their bodies."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edge_attn.errors import ExportError
from edge_attn.ops import OPSET
from edge_attn.spec import GraphSpec
from export import lower

IR_VERSION = 10
"""The newest runtime of Python 3.10 reads it."""


def trace(module: nn.Module, spec: GraphSpec, example: Sequence[Tensor]) -> onnx.ModelProto:
    """`module` as an ONNX model with the names and the symbolic axes of `spec`.

    Raises:
        ExportError: torch cannot export it, or an axis that `spec` names is not dynamic.
    """
    axes: dict[str, torch.export.Dim] = {}
    dynamic = []
    for tensor in spec.inputs:
        named = {i: axis for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        dynamic.append({i: axes.setdefault(axis, torch.export.Dim(axis, min=1)) for i, axis in named.items()})
    shapes = _arguments(module, dynamic)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module.eval(), tuple(example), dynamic_shapes=shapes, strict=False)
            exported = torch.onnx.export(
                program,
                input_names=[t.name for t in spec.inputs],
                output_names=[t.name for t in spec.outputs],
                opset_version=OPSET,
                custom_translation_table=lower.translations(),
                dynamo=True,
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"torch cannot export {type(module).__name__}: {error}") from error
    assert exported is not None
    model = exported.model_proto
    del model.graph.value_info[:]
    model.ir_version = IR_VERSION
    lower.attach_functions(model)
    _name_axes(model, spec)
    return model


def _arguments(module: nn.Module, dynamic: list[dict[int, torch.export.Dim]]) -> tuple[object, ...]:
    """`dynamic` in the shape of forward's parameters, where `*tensors` takes what is left as one tuple."""
    import inspect

    given: list[object] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            given.append(tuple(dynamic[len(given) :]))
            break
        given.append(dynamic[len(given)])
    return tuple(given)


def _name_axes(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Writes the spec's axes on the graph's inputs and outputs, and refuses an axis that came out frozen."""
    for values, tensors in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            for dim, axis in zip(value.type.tensor_type.shape.dim, tensor.shape, strict=True):
                if isinstance(axis, str):
                    if dim.HasField("dim_value"):
                        raise ExportError(f"{tensor.name}: axis {axis!r} came out frozen at {dim.dim_value}")
                    dim.dim_param = axis
                elif not dim.HasField("dim_value"):
                    dim.dim_value = axis


def store_as_fp16(model: onnx.ModelProto) -> None:
    """Keeps fp32 initializers as fp16 and a Cast where no value changes: half the size, the same fp32 graph."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.raw_data) < 1024:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.fp16"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.fp16"], [name], to=onnx.TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])


def example_inputs(spec: GraphSpec, sizes: Mapping[str, int], seed: int = 0) -> list[np.ndarray]:
    """Random inputs that fit `spec` at the axes' `sizes`; integers without a range are 0 to 3."""
    random = np.random.default_rng(seed)
    made = []
    for tensor in spec.inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
        if tensor.dtype == "bool":
            made.append(random.random(shape) < 0.7)
        elif tensor.dtype.startswith("int"):
            least, most = (_bound(end, sizes) for end in tensor.values or (0, 3))
            made.append(random.integers(least, most + 1, shape).astype(tensor.dtype))
        else:
            made.append(random.standard_normal(shape).astype(tensor.dtype))
    return made


def _bound(end: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(end, int):
        return end
    axis, _, less = end.partition("-")
    return sizes[axis] - int(less or 0)
