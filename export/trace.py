"""From a torch module to an ONNX model: torch.export, then nodes of our domain, then their bodies."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edge_attn.errors import ExportError
from edge_attn.export import lower
from edge_attn.ops import OPSET
from edge_attn.spec import GraphSpec

IR_VERSION = 10
"""The newest runtime of Python 3.10 reads it."""


def trace(module: nn.Module, spec: GraphSpec, example: Sequence[Tensor]) -> onnx.ModelProto:
    """`module` as an ONNX model with the names and the symbolic axes of `spec`.

    Raises:
        ExportError: torch cannot export it, or its inputs and outputs are not those that `spec` names.
    """
    axes: dict[str, torch.export.Dim] = {}
    dynamic = []
    for tensor in spec.inputs:
        named = {i: axis for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        dynamic.append({i: axes.setdefault(axis, torch.export.Dim(axis, min=1)) for i, axis in named.items()})
    try:
        shapes = _arguments(module, dynamic)
        with _quiet(), torch.no_grad():
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
        raise ExportError(f"torch cannot export {_blamed(module, error)}: {error}") from error
    assert exported is not None
    model = exported.model_proto
    del model.graph.value_info[:]
    model.ir_version = IR_VERSION
    lower.attach_functions(model)
    _name_axes(model, spec)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on what is not installed and what is deprecated in it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _blamed(module: nn.Module, error: BaseException) -> str:
    """The module, and the path of the innermost one inside it whose call raised `error`."""
    paths = {id(inner): path for path, inner in module.named_modules()}
    found = ""
    frame = error.__traceback__
    while frame is not None:
        found = paths.get(id(frame.tb_frame.f_locals.get("self")), found)
        frame = frame.tb_next
    return f"{type(module).__name__}{f', in {found} ({type(module.get_submodule(found)).__name__})' if found else ''}"


def _arguments(module: nn.Module, dynamic: list[dict[int, torch.export.Dim]]) -> tuple[object, ...]:
    """`dynamic` in the shape of forward's parameters, where `*tensors` takes what is left as one tuple."""
    given: list[object] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        left = dynamic[len(given) :]
        if left and parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return (*given, tuple(left))
        given += left[:1]
    return tuple(given)


def _name_axes(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Writes the spec's axes on the graph's inputs and outputs, and refuses a type or an axis that is another one."""
    for kind, values, tensors in (
        ("inputs", model.graph.input, spec.inputs),
        ("outputs", model.graph.output, spec.outputs),
    ):
        if len(values) != len(tensors):
            raise ExportError(f"the module has {len(values)} {kind}, described were {len(tensors)}")
        for value, tensor in zip(values, tensors, strict=True):
            found = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(found.elem_type).name
            dims = found.shape.dim
            if dtype != tensor.dtype or len(dims) != len(tensor.shape):
                raise ExportError(f"{tensor.name} is {dtype} of {len(dims)} axes, described was {tensor}")
            for dim, axis in zip(dims, tensor.shape, strict=True):
                if isinstance(axis, str):
                    if dim.HasField("dim_value"):
                        raise ExportError(f"{tensor.name}: axis {axis!r} came out frozen at {dim.dim_value}")
                    dim.dim_param = axis
                elif dim.HasField("dim_value") and dim.dim_value != axis:
                    raise ExportError(f"{tensor.name}: an axis has size {dim.dim_value}, described was {tensor}")
                else:
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
