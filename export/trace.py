"""Export a torch module to an ONNX model: torch.export, nodes of our domain, then their function bodies."""

from __future__ import annotations

import inspect
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edge_attn.errors import ExportError
from edge_attn.export import lower
from edge_attn.ops import OPSET
from edge_attn.spec import GraphSpec

IR_VERSION = 10
"""IR version of exported models; the newest ONNX Runtime for Python 3.10 reads it."""
STACK_TRACE = "pkg.torch.onnx.stack_trace"
"""Key of the metadata with the source lines of a node."""


def trace(module: nn.Module, spec: GraphSpec, example: Sequence[Tensor]) -> onnx.ModelProto:
    """Return `module` as an ONNX model with the names and the symbolic axes of `spec`.

    Raises:
        ExportError: torch cannot export it, or its inputs and outputs differ from `spec`.
    """
    axes: dict[str, torch.export.Dim] = {}
    dynamic = []
    for tensor in spec.inputs:
        symbolic = {i: axis for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        dynamic.append({i: axes.setdefault(axis, torch.export.Dim(axis, min=1)) for i, axis in symbolic.items()})
    try:
        shapes = _dynamic_shapes(module, dynamic)
        with quiet(), torch.no_grad():
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
        raise ExportError(f"torch cannot export {_failing_submodule(module, error)}: {error}") from error
    assert exported is not None
    model = exported.model_proto
    del model.graph.value_info[:]
    remove_stack_traces(model)
    model.ir_version = IR_VERSION
    lower.attach_functions(model)
    _name_axes(model, spec)
    return model


def remove_stack_traces(model: onnx.ModelProto) -> None:
    """Remove the source lines that torch notes at each node: they contain the paths of the exporting machine."""
    for node in lower.nodes(model.graph):
        entries = [entry for entry in node.metadata_props if entry.key != STACK_TRACE]
        del node.metadata_props[:]
        node.metadata_props.extend(entries)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter: it reports its own deprecations, absent packages and graphs at the place of an error."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sys.stdout.flush()
    sys.stderr.flush()
    streams = {number: os.dup(number) for number in (1, 2)}  # torch's C++ code writes there
    try:
        with (
            tempfile.TemporaryFile() as file,
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            for number in streams:
                os.dup2(file.fileno(), number)
            warnings.simplefilter("ignore")
            yield
    finally:
        for number, copied in streams.items():
            os.dup2(copied, number)
            os.close(copied)
        logging.disable(previous)


def _failing_submodule(module: nn.Module, error: BaseException) -> str:
    """Return the name of the module, and the path of its innermost submodule whose call raised `error`."""
    paths = {id(submodule): path for path, submodule in module.named_modules()}
    failing = ""
    frame = error.__traceback__
    while frame is not None:
        failing = paths.get(id(frame.tb_frame.f_locals.get("self")), failing)
        frame = frame.tb_next
    location = f", in {failing} ({type(module.get_submodule(failing)).__name__})" if failing else ""
    return f"{type(module).__name__}{location}"


def _dynamic_shapes(module: nn.Module, dynamic: list[dict[int, torch.export.Dim]]) -> tuple[object, ...]:
    """Return `dynamic` by parameter of `module.forward`; a `*tensors` parameter takes the remaining ones as a tuple."""
    shapes: list[object] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        remaining = dynamic[len(shapes) :]
        if remaining and parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return (*shapes, tuple(remaining))
        shapes += remaining[:1]
    return tuple(shapes)


def _name_axes(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Write the axes of `spec` on the graph's inputs and outputs.

    Raises:
        ExportError: a type or an axis of the graph differs from `spec`.
    """
    for kind, values, tensors in (
        ("inputs", model.graph.input, spec.inputs),
        ("outputs", model.graph.output, spec.outputs),
    ):
        if len(values) != len(tensors):
            raise ExportError(f"the module has {len(values)} {kind}, expected {len(tensors)}")
        for value, tensor in zip(values, tensors, strict=True):
            actual = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(actual.elem_type).name
            dims = actual.shape.dim
            if dtype != tensor.dtype or len(dims) != len(tensor.shape):
                raise ExportError(f"{tensor.name} is {dtype} with {len(dims)} axes, expected {tensor}")
            for dim, axis in zip(dims, tensor.shape, strict=True):
                if isinstance(axis, str):
                    if dim.HasField("dim_value"):
                        raise ExportError(f"{tensor.name}: axis {axis!r} has the fixed size {dim.dim_value}")
                    dim.dim_param = axis
                elif dim.HasField("dim_value") and dim.dim_value != axis:
                    raise ExportError(f"{tensor.name}: an axis has size {dim.dim_value}, expected {tensor}")
                else:
                    dim.dim_value = axis


def store_as_fp16(model: onnx.ModelProto) -> None:
    """Store fp32 initializers as fp16 with a Cast where no value changes: half the size, the same fp32 graph."""
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
