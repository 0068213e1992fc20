"""Targets of `optimize`: their precisions, their oldest supported version, and the conversion to each precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

import onnx

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.runtimes.onnx_graph import load
from edge_attn.runtimes.optimize import float16, int8
from edge_attn.runtimes.optimize.calibration import Models, activation_ranges
from edge_attn.runtimes.optimize.inline import inline
from edge_attn.runtimes.optimize.mixed_precision import Conversion
from edge_attn.runtimes.optimize.trt_operators import Version, check
from edge_attn.runtimes.trt.api import OLDEST

RECURRENT = ("GRU", "LSTM", "RNN")
ConversionFactory: TypeAlias = Callable[[Bundle, Models, Sequence[str], RuntimeOptions], Conversion]
"""factory(bundle, inlined graphs, calibration lines, options)"""


@dataclass(frozen=True)
class Recipe:
    """Rewrites for one target."""

    conversions: dict[str, ConversionFactory]
    """Conversion by precision."""
    oldest: Version | None
    """Oldest supported version of the target; None for a target without versions."""
    engines: bool
    """True where engines are built from the graphs, on the device."""

    @property
    def precisions(self) -> tuple[str, ...]:
        return tuple(self.conversions)


def inlined(bundle: Bundle, oldest: Version | None, plugins: Set[str]) -> Models:
    """Return the graphs of `bundle` in standard ops and calls of `plugins`, all of which version `oldest` reads.

    Raises:
        BundleError: a file is not an ONNX graph.
        InputError: `oldest` cannot read an op.
    """
    models = {}
    for name, spec in bundle.manifest.graphs.items():
        model = load(bundle.read(spec.file), f"{bundle.path}: {spec.file}")
        if oldest:  # before inlining, because only a function's call has its module; and after it, on the result
            check(name, model, oldest, plugins)
        models[name] = inline(model, plugins)
        if oldest:
            check(name, models[name], oldest, plugins)
    return models


def no_conversion(*_: object) -> Conversion:
    """Return fp32: the inlined graphs as they are."""
    return Conversion(lambda model: [], lambda name, model, nodes: model)


def fp16_conversion(*_: object) -> Conversion:
    """Return fp16 with fp32 islands."""
    return Conversion(float16.convertible_nodes, lambda name, model, nodes: float16.to_float16(model, nodes))


def strongly_typed_fp16_conversion(*_: object) -> Conversion:
    """Return fp16 for TensorRT's strong typing, in which recurrences with lengths stay fp32.

    TensorRT's parser masks them with an fp32 zero, which strong typing refuses beside fp16, in all versions that could
    be tried; a test fails when that ends.
    """
    return Conversion(_without_masked_recurrences, lambda name, model, nodes: float16.to_float16(model, nodes))


def _without_masked_recurrences(model: onnx.ModelProto) -> list[str]:
    masked = {node.output[0] for node in model.graph.node if node.op_type in RECURRENT and "".join(node.input[4:5])}
    return [name for name in float16.convertible_nodes(model) if name not in masked]


def int8_conversion(bundle: Bundle, models: Models, sentences: Sequence[str], options: RuntimeOptions) -> Conversion:
    """Return int8 with scales from `sentences`.

    Args:
        bundle: the bundle.
        models: its inlined graphs.
        sentences: calibration lines.
        options: options of the runtime ort-cpu.
    """
    tensors = {name: int8.activations(model) for name, model in models.items()}
    ranges = activation_ranges(bundle, models, tensors, sentences, options)
    return Conversion(int8.convertible_nodes, functools.partial(_to_int8, ranges))


def _to_int8(
    ranges: Mapping[str, Mapping[str, float]], name: str, model: onnx.ModelProto, nodes: Set[str]
) -> onnx.ModelProto:
    return int8.to_int8(model, nodes, ranges[name])


TRT = Recipe(
    {"fp32": no_conversion, "fp16": strongly_typed_fp16_conversion, "int8": int8_conversion}, OLDEST, engines=True
)
ORT_CUDA = Recipe({"fp32": no_conversion, "fp16": fp16_conversion}, None, engines=False)
