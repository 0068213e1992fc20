"""Inputs and outputs of graphs, and the interface of the runtimes that run them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from edge_attn.versions import require

require("numpy")

Value: TypeAlias = Any
"""A tensor in the form of its runtime: OrtValue, torch tensor or device buffer. numpy arrays are inputs too."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype (as numpy names it) and shape of a tensor. A string in the shape is a symbolic axis."""

    name: str
    dtype: str
    shape: tuple[Any, ...]
    values: tuple[Any, ...] = ()
    """Inclusive (min, max) of an integer input. An end may be an axis name, or '<axis>-1'."""

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class GraphSpec:
    """One graph of a bundle: its file, and its inputs and outputs in order."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def names(self, prefix: str) -> list[str]:
        """Return the names of the inputs that begin with `prefix` (`memory.`, `state.`)."""
        return [tensor.name for tensor in self.inputs if tensor.name.startswith(prefix)]


class Runtime(Protocol):
    """Runs the graphs of a bundle. Values stay in the form of the runtime until `numpy` reads one."""

    name: str
    provider: str
    """Name of the provider that runs the graphs, as the runtime itself reports it."""
    precision: str
    """Compute precision of the graphs: fp32, fp16 or int8; fp64 for the reference that measures noise."""
    graphs: Mapping[str, GraphSpec]
    max_batch: int | None
    """Maximum batch size; None means no limit."""
    max_beam: int | None
    """Maximum beam; None means no limit."""

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Run a graph and return its outputs by name."""

    def numpy(self, value: Value) -> np.ndarray:
        """Return a value as a numpy array."""

    def select_rows(self, value: Value, index: np.ndarray) -> Value | None:
        """Return a copy of rows `index` of a (batch, ...) value, or None if the runtime cannot copy rows."""

    def close(self) -> None:
        """Free all resources. Nothing runs afterwards."""
