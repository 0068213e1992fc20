"""`edge_attn.export_module`: a user's module to an ONNX file that was compared with torch at many shapes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from edge_attn.checkpoint import write_file
from edge_attn.errors import ExportError
from edge_attn.export import checks, descriptions
from edge_attn.export.binding import FlatModule, bind
from edge_attn.export.capture import capture
from edge_attn.export.comparison import check_repeatable, check_sizes, run_module
from edge_attn.export.descriptions import Tree
from edge_attn.export.failures import one_line
from edge_attn.export.fold_embeddings import fold_embedding_matmul
from edge_attn.export.inline import inline_functions
from edge_attn.export.shapes import example_inputs, ladder, shapes, sizes_of, traced_sizes
from edge_attn.progress import logger, stage, stages
from edge_attn.spec import Axis, ModuleSpec

PROBES = (12, 8, 16, 24, 32, 48, 64, 96, 128, 256, 3)
"""Sizes of an axis without description that are tried where torch runs the module at few others."""
FEW = 3
"""Number of sizes of an axis below which PROBES are tried."""


@stages("export")
def export_module(
    module: nn.Module,
    out: str | os.PathLike[str],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    axes: Mapping[str, Any] | None = None,
    examples: Sequence[Mapping[str, Any]] = (),
    inline: bool = False,
) -> ModuleSpec:
    """Export a module of the user to the ONNX file `out`, and return its description; see `edge_attn.export_module`.

    Args:
        module: torch module; it is exported, and left, in evaluation mode.
        out: ONNX file to write.
        inputs: description of each input, by name.
        outputs: description of each output, by name.
        axes: sizes that dynamic axes take, by name.
        examples: example inputs, by name of the input.
        inline: replace functions by their standard ops.

    Raises:
        ExportError: it does not export, or a check fails. Nothing is written then.
        InputError: `out` cannot be written.
    """
    if not isinstance(module, nn.Module):
        raise ExportError(f"expected a torch.nn.Module, got {type(module).__name__}")
    out = Path(out)
    described = descriptions.axes(axes)
    flat, structure = descriptions.inputs(inputs, described)
    spec = ModuleSpec(
        out.name, tuple(flat), tuple(descriptions.outputs(outputs, [tensor.name for tensor in flat])), described
    )
    module.eval()
    checks.finite(module)
    with _without_fast_path():
        own = [_example(spec, example) for example in examples]
        flat_module, example = _bind(module, spec, structure, own)
        check_repeatable(flat_module, example)
        stage("run it in torch at many sizes")
        sizes, left_out = _sizes(flat_module, spec, example, own)
        stage("trace and compare with torch")
        model, exporter, worst = _graph(out.stem, flat_module, spec, example, sizes, own)
    if inline:
        model = inline_functions(model)
        checks.agreement(out.stem, model, spec, flat_module, sizes[:2], own)
    write_file(out, model.SerializeToString(deterministic=True))
    shown = (*sizes, *(sizes_of(spec, values) for values in own))
    result = dataclasses.replace(spec, exporter=exporter, max_abs=worst, shapes=shown, left_out=tuple(left_out))
    logger.info("%s", result.summary())
    return result


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Turn off torch's fused Transformer layers, which write zeros at masked positions and have no ONNX translation."""
    previous = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(previous)


def _example(spec: ModuleSpec, example: Mapping[str, Any]) -> list[np.ndarray]:
    names = [tensor.name for tensor in spec.inputs]
    if not isinstance(example, Mapping) or set(example) != set(names):
        raise ExportError(f"an example is a dict with the inputs {', '.join(names)}")
    values = [
        example[name].detach().numpy() if isinstance(example[name], torch.Tensor) else np.asarray(example[name])
        for name in names
    ]
    sizes_of(spec, values)
    return values


def _bind(
    module: nn.Module, spec: ModuleSpec, structure: Mapping[str, Tree], own: Sequence[list[np.ndarray]]
) -> tuple[FlatModule, list[np.ndarray]]:
    """Return the module from flat tensors to flat tensors, and inputs with which it runs.

    Raises:
        ExportError: it does not run at any size, or its outputs are not as described.
    """
    names = [tensor.name for tensor in spec.outputs]
    first = traced_sizes(spec, spec.axes)
    free = [axis for axis in first if axis not in spec.axes and axis != "batch"]
    candidates = [example_inputs(spec, {**first, **dict.fromkeys(free, size)}) for size in PROBES] if free else []
    failure: ExportError | None = None
    for example in [own[0]] if own else [example_inputs(spec, first), *candidates]:
        try:
            return bind(module, structure, names, [torch.from_numpy(value) for value in example]), example
        except ExportError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _sizes(
    module: FlatModule, spec: ModuleSpec, example: list[np.ndarray], own: Sequence[list[np.ndarray]]
) -> tuple[list[dict[str, int]], list[str]]:
    """Return the sizes at which torch runs the module, and the others with their reason.

    Raises:
        ExportError: an output is not as described, torch refuses sizes that are described, or only one size is left.
    """
    base = sizes_of(spec, example)
    _check_outputs(module, spec, base, example)
    if len(own) > 1 and all(len({sizes_of(spec, values)[axis] for values in own}) > 1 for axis in base):
        return [], []  # the user's examples alone show what the inputs are
    sizes, refused = [], []

    def attempt(at: dict[str, int]) -> str:
        try:
            inputs = example_inputs(spec, at)
            run_module(module, inputs)
        except ExportError:
            raise
        except Exception as error:  # the user's module raises anything
            return f"{type(error).__name__}: {one_line(str(error))}"
        _check_outputs(module, spec, at, inputs)
        sizes.append(at)
        return ""

    for at in shapes(spec, spec.axes):
        reason = attempt(at)
        if not reason:
            continue
        described = {axis: at[axis] if axis in spec.axes else size for axis, size in base.items()}
        if set(at) <= set(spec.axes) or (described != base and attempt(described)):
            raise ExportError(
                f"{type(module.module).__name__} does not run in torch at {_text(at)}, which its description allows: "
                f"{reason}"
            )
        refused.append(f"{_text(at)}: {reason}")
    for axis in [axis for axis in base if refused and axis not in spec.axes]:
        for size in (base[axis], *PROBES):
            if len({at[axis] for at in sizes}) < FEW and size not in {at[axis] for at in sizes}:
                attempt({**base, axis: size})
    for axis in base:
        if len({at[axis] for at in sizes}) < 2 and len(ladder(axis, spec.axes.get(axis, Axis()))) > 1:
            raise ExportError(
                f"torch runs {type(module.module).__name__} only with {axis} {base[axis]} of those tried "
                f"({refused[0]}); describe the axis as this number, or its sizes, as in "
                f"axes={{{axis!r}: {{'minimum': 4, 'multiple': 4}}}}"
            )
    return sizes, refused


def _check_outputs(module: FlatModule, spec: ModuleSpec, at: Mapping[str, int], inputs: list[np.ndarray]) -> None:
    """Check dtype and shape of torch's outputs at one size.

    Raises:
        ExportError: they are not as described.
    """
    for tensor, value in zip(spec.outputs, run_module(module, inputs), strict=True):
        where = f"torch at {_text(at)}"
        if value.dtype.name != tensor.dtype:
            raise ExportError(f"{where}: {tensor.name} is {value.dtype.name} {value.shape}, expected {tensor}")
        check_sizes(where, tensor, at, value)


def _graph(
    name: str,
    module: FlatModule,
    spec: ModuleSpec,
    example: list[np.ndarray],
    sizes: list[dict[str, int]],
    own: Sequence[list[np.ndarray]],
) -> tuple[onnx.ModelProto, str, float]:
    """Return the first graph that agrees with torch, its exporter, and the largest difference.

    Raises:
        ExportError: none does; the error is the one of the better exporter.
    """
    failure: ExportError | None = None
    for exporter, model in capture(module, spec, tuple(torch.from_numpy(value) for value in example)):
        if isinstance(model, ExportError):
            failure = model if exporter == "torch.export" else failure or model
            continue
        try:
            fold_embedding_matmul(model)
            checks.structure(name, model, spec)
            return model, exporter, checks.agreement(name, model, spec, module, sizes, own)
        except ExportError as error:
            failure = failure or _frozen(name, model, spec, module, example, error)
    assert failure is not None
    raise failure


def _frozen(
    name: str,
    model: onnx.ModelProto,
    spec: ModuleSpec,
    module: FlatModule,
    example: list[np.ndarray],
    error: ExportError,
) -> ExportError:
    """Return `error`, with its reason if the graph is right at the traced sizes."""
    try:
        checks.agreement(name, model, spec, module, [], [example])
    except ExportError:
        return error
    if not sizes_of(spec, example):
        return error
    return ExportError(
        f"{error}; it is right at the traced sizes, {_text(sizes_of(spec, example))}: a Python loop over an axis or a "
        "number computed from a size is fixed in the graph; use functions of whole tensors, or nn.GRU, nn.LSTM, nn.RNN"
    )


def _text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items()) or "its only size"
