"""The reference: the torch model itself behind the Runtime interface."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from edge_attn.bundle.bundle import Bundle
from edge_attn.checkpoint import load
from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.decoding.decoder import output_sizes
from edge_attn.models.graphs import Graph, encoder_decoder_graphs
from edge_attn.models.interface import EncoderDecoder
from edge_attn.spec import GraphSpec, Value
from edge_attn.text.pipeline import Text

CANDIDATES = 16
"""Candidates of a step, unless another number is exported."""


class TorchRuntime:
    """Graphs that eager torch runs, in the precision of their weights."""

    name = "torch"
    max_batch: int | None = None
    max_beam: int | None = None

    def __init__(self, graphs: Mapping[str, Graph], precision: str = "fp32") -> None:
        self._graphs = graphs
        self.graphs: Mapping[str, GraphSpec] = {name: graph.spec for name, graph in graphs.items()}
        self.provider = f"torch {torch.__version__}, {precision}"
        self.precision = precision

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Run a graph and return its outputs by name, as torch tensors."""
        module = self._graphs[graph]
        tensors = [torch.as_tensor(inputs[tensor.name]) for tensor in module.spec.inputs]
        with torch.inference_mode():
            return dict(zip((t.name for t in module.spec.outputs), module(*tensors), strict=True))

    def numpy(self, value: Value) -> np.ndarray:
        """Return a value as an array."""
        result: np.ndarray = value.numpy()
        return result

    def select_rows(self, value: Value, index: np.ndarray) -> Value | None:
        """Return None: the reference computes every sentence of its batch to the end."""
        return None

    def close(self) -> None:
        """Do nothing: the model is freed with its last reader."""


@dataclass(frozen=True)
class ModelReferences:
    """An encoder-decoder model in the four forms that a recording needs, each built when it is first used."""

    model: EncoderDecoder
    candidates: int = CANDIDATES
    folded: bool = True
    """True if the exported graphs are folded."""

    @functools.cached_property
    def reference(self) -> TorchRuntime:
        """Return the model's own equations in fp32."""
        return TorchRuntime(encoder_decoder_graphs(self.model, self.candidates, folded=False))

    @functools.cached_property
    def precise(self) -> TorchRuntime:
        """Return the model's own equations in fp64."""
        return TorchRuntime(encoder_decoder_graphs(self._double, self.candidates, folded=False), "fp64")

    @functools.cached_property
    def deployed(self) -> TorchRuntime:
        """Return the exported form in fp32."""
        return TorchRuntime(encoder_decoder_graphs(self.model, self.candidates, self.folded))

    @functools.cached_property
    def deployed_precise(self) -> TorchRuntime:
        """Return the exported form in fp64."""
        return TorchRuntime(encoder_decoder_graphs(self._double, self.candidates, self.folded), "fp64")

    @functools.cached_property
    def _double(self) -> Any:
        return copy.deepcopy(cast(nn.Module, self.model)).double()


@dataclass(frozen=True)
class LiveModel:
    """The model of a checkpoint, with its text processing."""

    references: ModelReferences
    text: Text
    max_source: int
    """Maximum source length in tokens."""


def open_checkpoint(path: Path, bundle: Bundle | None = None, options: RuntimeOptions = DEFAULT) -> LiveModel:
    """Return the live model of a checkpoint, with the graphs' properties of `bundle` if there is one.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model, text, config = load(path)
    candidates, folded = CANDIDATES, True
    if bundle is not None:
        candidates, _ = output_sizes(bundle.manifest.graphs)
        folded = bool(bundle.manifest.provenance.get("folded"))  # absent in bundles of 0.1.0, which are not folded
    return LiveModel(ModelReferences(model, candidates, folded), text, config.data.max_tokens)
