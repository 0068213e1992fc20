"""A user's module to an ONNX model by the exporters of torch, the better one first.

torch.export runs with automatic dynamic axes: named ones turn each guard into an error. Whether a graph is right at
every size is what the comparison with torch shows.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import onnx
import torch
from onnx_ir.passes import PassError
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes
from torch.jit import TracerWarning  # type: ignore[attr-defined]  # public, but not in its __all__

from edge_attn.errors import ExportError
from edge_attn.export import lower, recurrent
from edge_attn.export.binding import FlatModule
from edge_attn.export.failures import DATA_DEPENDENT, chain, explain_export
from edge_attn.export.fold_constants import fold_constants
from edge_attn.export.replacements import replaced
from edge_attn.export.trace import IR_VERSION, quiet, remove_stack_traces
from edge_attn.ops import OPSET
from edge_attn.spec import GraphSpec

PREFIX = re.compile(r"(^|/)module[./]")
"""What the names of weights and nodes begin with, as `FlatModule` contains the user's module."""


def capture(
    module: FlatModule, spec: GraphSpec, example: tuple[Tensor, ...]
) -> Iterator[tuple[str, onnx.ModelProto | ExportError]]:
    """Yield the name of each exporter and its graph of `module`; at last why the first gives none, if so."""
    scripted = any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())
    exporters: dict[str, Callable[..., onnx.ModelProto]] = {} if scripted else {"torch.export": _torch_export}
    errors: dict[str, Exception] = {}
    programs: list[torch.export.ExportedProgram] = []
    on_values = False
    for name, exporter in {**exporters, "TorchScript": _torch_script}.items():
        try:
            with quiet(), torch.no_grad(), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model = exporter(module, spec, example, programs)
        except Exception as error:  # torch's errors share no class but Exception
            on_values = on_values or any(re.search(DATA_DEPENDENT, f"{type(e).__name__} {e}") for e in chain(error))
            errors[name] = error
            continue
        if on_values and any(issubclass(w.category, TracerWarning) for w in caught):
            break  # the branch that the example takes would be fixed
        yield name, _finish(model, spec)
    if errors:
        sentence = explain_export(module.module, list(errors.values()), programs)
        yield next(iter(errors)), ExportError(sentence)


def _torch_export(
    module: FlatModule, spec: GraphSpec, example: tuple[Tensor, ...], programs: list[torch.export.ExportedProgram]
) -> onnx.ModelProto:
    dynamic = tuple(
        {i: torch.export.Dim.AUTO for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        for tensor in spec.inputs
    )
    with replaced(), symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # added when it runs
        program = torch.export.export(module, example, dynamic_shapes=(dynamic,), strict=False)
    programs.append(program)  # it knows the lines of the user, if the next step fails

    def export(optimize: bool) -> torch.onnx.ONNXProgram | None:
        return torch.onnx.export(
            program,
            input_names=[t.name for t in spec.inputs],
            output_names=[t.name for t in spec.outputs],
            opset_version=OPSET,
            custom_translation_table={**lower.translations(), **recurrent.translations()},
            dynamo=True,
            optimize=optimize,
            verbose=False,
        )

    try:
        exported = export(optimize=True)
    except PassError:  # its constant folding fails at a split into sizes that depend on an input
        exported = export(optimize=False)
    assert exported is not None
    model: onnx.ModelProto = exported.model_proto
    return model


def _torch_script(
    module: nn.Module, spec: GraphSpec, example: tuple[Tensor, ...], _: list[torch.export.ExportedProgram]
) -> onnx.ModelProto:
    file = io.BytesIO()
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):  # it must be a part of a traced one
        module = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
    torch.onnx.export(
        module,
        example,
        cast(Any, file),  # its type is path, a file works as well
        input_names=[t.name for t in spec.inputs],
        output_names=[t.name for t in spec.outputs],
        dynamic_axes={
            t.name: {i: axis for i, axis in enumerate(t.shape) if isinstance(axis, str)}
            for t in (*spec.inputs, *spec.outputs)
        },
        opset_version=OPSET,
        dynamo=False,
        verbose=False,
    )
    return onnx.load_from_string(file.getvalue())


def _finish(model: onnx.ModelProto, spec: GraphSpec) -> onnx.ModelProto:
    """Return the graph with the names and axes of `spec`, the module's own names, and its functions.

    Raises:
        ExportError: the graph's inputs or outputs are not those of `spec`.
    """
    del model.graph.value_info[:]
    model.graph.name = "module"
    remove_stack_traces(model)
    _rename(model.graph)
    model.ir_version = IR_VERSION
    fold_constants(model)
    lower.attach_functions(model)
    _describe(model, spec)
    return model


def _rename(graph: onnx.GraphProto) -> None:
    """Remove `FlatModule` from the names of weights and nodes."""
    names = {tensor.name: PREFIX.sub(r"\1", tensor.name, count=1) for tensor in graph.initializer}
    taken = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    names = {old: new for old, new in names.items() if old != new and new not in taken and new not in names}
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in lower.nodes(graph):
        node.name = PREFIX.sub(r"\1", node.name, count=1)
        node.doc_string = ""
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)


def _describe(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Write the shapes of `spec` on inputs and outputs: torch writes the traced size where it fixed an axis.

    Raises:
        ExportError: an input is unused, or an output has another type.
    """
    present = {value.name: value for value in model.graph.input}
    for tensor in spec.inputs:
        if tensor.name not in present:
            raise ExportError(f"the graph does not use its input {tensor.name}; remove it from the module")
    inputs = [present[tensor.name] for tensor in spec.inputs]
    for value, tensor in zip([*inputs, *model.graph.output], [*spec.inputs, *spec.outputs], strict=True):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        if dtype != tensor.dtype:
            raise ExportError(f"{tensor.name} is {dtype} in the graph, expected {tensor}")
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(onnx.helper.make_tensor_value_info(tensor.name, kind, tensor.shape))
    del model.graph.input[:]
    model.graph.input.extend(inputs)
