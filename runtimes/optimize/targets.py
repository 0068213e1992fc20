"""What each target takes: its precisions, the oldest version that reads its graphs, and how each precision is made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

import onnx

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.runtimes.onnx_graph import load
from edge_attn.runtimes.optimize.calibration import Models, largest
from edge_attn.runtimes.optimize.float16 import half
from edge_attn.runtimes.optimize.float16 import lowerable as may_be_half
from edge_attn.runtimes.optimize.inline import inline
from edge_attn.runtimes.optimize.int8 import activations, int8
from edge_attn.runtimes.optimize.int8 import lowerable as may_be_int8
from edge_attn.runtimes.optimize.mixed_precision import Lowering
from edge_attn.runtimes.optimize.trt_operators import Version, check
from edge_attn.runtimes.trt.api import OLDEST

RECURRENT = ("GRU", "LSTM", "RNN")
Maker: TypeAlias = Callable[[Bundle, Models, Sequence[str], RuntimeOptions], Lowering]
"""From a bundle, its inlined graphs and the calibration lines."""


@dataclass(frozen=True)
class Recipe:
    lowerings: dict[str, Maker]
    """By precision."""
    oldest: Version | None
    """The oldest version served, if the target has versions of its own."""
    engines: bool
    """Whether engines are built from the graphs, on the device."""

    @property
    def precisions(self) -> tuple[str, ...]:
        return tuple(self.lowerings)


def inlined(bundle: Bundle, oldest: Version | None, plugins: Set[str]) -> Models:
    """The graphs of `bundle` in standard ops and calls of `plugins`, all of which the version `oldest` reads.

    Raises:
        BundleError: a file that is no graph.
        InputError: an op that it cannot read.
    """
    made = {}
    for name, spec in bundle.manifest.graphs.items():
        model = load(bundle.read(spec.file), f"{bundle.path}: {spec.file}")
        if oldest:  # asked before, because the call of a function knows its module, and after, of what is left
            check(name, model, oldest, plugins)
        made[name] = inline(model, plugins)
        if oldest:
            check(name, made[name], oldest, plugins)
    return made


def nothing(bundle: Bundle, models: Models, sentences: Sequence[str], options: RuntimeOptions) -> Lowering:
    """fp32: the inlined graphs as they are."""
    return Lowering(lambda model: [], lambda name, model, lowered: model)


def to_half(bundle: Bundle, models: Models, sentences: Sequence[str], options: RuntimeOptions) -> Lowering:
    return Lowering(may_be_half, lambda name, model, lowered: half(model, lowered))


def to_typed_half(bundle: Bundle, models: Models, sentences: Sequence[str], options: RuntimeOptions) -> Lowering:
    """Recurrences with lengths stay fp32: TensorRT's parser masks them with a zero of fp32, which strong typing
    refuses beside fp16 (all versions that could be tried; a test says when that ends)."""
    return Lowering(_may_be_typed_half, lambda name, model, lowered: half(model, lowered))


def _may_be_typed_half(model: onnx.ModelProto) -> list[str]:
    masked = {node.output[0] for node in model.graph.node if node.op_type in RECURRENT and "".join(node.input[4:5])}
    return [name for name in may_be_half(model) if name not in masked]


def to_int8(bundle: Bundle, models: Models, sentences: Sequence[str], options: RuntimeOptions) -> Lowering:
    """With scales from `sentences`."""
    tensors = {name: activations(model) for name, model in models.items()}
    return Lowering(may_be_int8, functools.partial(_int8, largest(bundle, models, tensors, sentences, options)))


def _int8(
    scales: Mapping[str, Mapping[str, float]], name: str, model: onnx.ModelProto, lowered: Set[str]
) -> onnx.ModelProto:
    return int8(model, lowered, scales[name])


TRT = Recipe({"fp32": nothing, "fp16": to_typed_half, "int8": to_int8}, OLDEST, True)
ORT_CUDA = Recipe({"fp32": nothing, "fp16": to_half}, None, False)
