"""The reference: the torch model itself, behind the same seam as every runtime."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch

from edge_attn.models.graphs import graphs
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.spec import GraphSpec, Value

CANDIDATES = 16


class Reference:
    """Eager torch, in fp32 or fp64."""

    name = "torch"

    def __init__(self, model: Seq2Seq, candidates: int = CANDIDATES, dtype: torch.dtype = torch.float32) -> None:
        own = model if next(model.parameters()).dtype == dtype else copy.deepcopy(model).to(dtype)
        self._graphs = graphs(own, candidates)
        self.graphs: Mapping[str, GraphSpec] = {name: graph.spec for name, graph in self._graphs.items()}
        self.provider = f"torch {torch.__version__}, {str(dtype).removeprefix('torch.')}"

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        module = self._graphs[graph]
        tensors = [torch.as_tensor(inputs[tensor.name]) for tensor in module.spec.inputs]
        with torch.inference_mode():
            return dict(zip((t.name for t in module.spec.outputs), module(*tensors), strict=True))

    def numpy(self, value: Value) -> np.ndarray:
        result: np.ndarray = value.numpy()
        return result
