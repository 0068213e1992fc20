"""The reference: the torch model itself, behind the same seam as every runtime."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from edge_attn.checkpoint import load
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.options import SearchConfig
from edge_attn.models.graphs import graphs
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.parity.golden import Golden
from edge_attn.parity.recorder import record, record_encoder
from edge_attn.spec import GraphSpec, Value
from edge_attn.text.pipeline import Text

CANDIDATES = 16
DEFAULT = RuntimeOptions()


class Reference:
    """Eager torch, in fp32 or fp64: the model's own equations, unless it is asked for as it is deployed."""

    name = "torch"
    max_batch: int | None = None

    def __init__(
        self,
        model: Seq2Seq,
        candidates: int = CANDIDATES,
        dtype: torch.dtype = torch.float32,
        folded: bool = False,
    ) -> None:
        own = model if next(model.parameters()).dtype == dtype else copy.deepcopy(model).to(dtype)
        self._graphs = graphs(own, candidates, folded)
        self.graphs: Mapping[str, GraphSpec] = {name: graph.spec for name, graph in self._graphs.items()}
        self.provider = f"torch {torch.__version__}, {str(dtype).removeprefix('torch.')}"
        self.precision = {torch.float32: "fp32", torch.float64: "fp64"}[dtype]

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        module = self._graphs[graph]
        tensors = [torch.as_tensor(inputs[tensor.name]) for tensor in module.spec.inputs]
        with torch.inference_mode():
            return dict(zip((t.name for t in module.spec.outputs), module(*tensors), strict=True))

    def numpy(self, value: Value) -> np.ndarray:
        result: np.ndarray = value.numpy()
        return result

    def select_rows(self, value: Value, index: np.ndarray) -> Value | None:
        """Whole: the reference computes every sentence of its batch to the end."""
        return None

    def close(self) -> None:
        """Nothing to do: the model goes with its last reader."""


def open_checkpoint(path: Path, options: RuntimeOptions = DEFAULT) -> tuple[Reference, Text, int]:
    """The reference of a checkpoint, its text, and its longest source in tokens."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model, text, config = load(path)
    return Reference(model), text, config.data.max_tokens


def record_live(path: Path, sentences: Sequence[str], max_source: int, candidates: int, folded: bool = True) -> Golden:
    """Golden data of the checkpoint's model for `sentences`, made now, for a bundle whose graphs are folded or not."""
    model, text, _ = load(path)
    return record_model(model, text, sentences, max_source, candidates, folded)


def record_model(
    model: Seq2Seq,
    text: Text,
    sentences: Sequence[str],
    max_source: int,
    candidates: int = CANDIDATES,
    folded: bool = True,
) -> Golden:
    """What `model` says about `sentences`, in fp32, with its noise against fp64.

    All of it is said by the model's own equations; the memory is that of the graphs, folded or not, for their encoder
    to be held to.
    """
    beam = max(1, min(5, candidates - 1))
    precise = Reference(model, candidates, torch.float64)
    config = SearchConfig(beam=beam, n_best=beam, max_length=2 * max_source)
    said = record(Reference(model, candidates), precise, text, sentences, config, max_source)
    if not folded:
        return said
    memory = record_encoder(Reference(model, candidates, folded=True), said.sources)
    kept = {name: rows for name, rows in said.arrays.items() if not name.startswith("encoder.")}
    return dataclasses.replace(said, arrays={**memory, **kept})
