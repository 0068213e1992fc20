"""What a graph takes and gives, and the seam between the search and whatever runs the graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

Value: TypeAlias = Any
"""A tensor where its runtime keeps it: an OrtValue, a torch tensor, a device buffer. numpy arrays are taken too."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's name, dtype (numpy's name) and shape; a string is a symbolic axis."""

    name: str
    dtype: str
    shape: tuple[Any, ...]
    values: tuple[Any, ...] = ()
    """Of integers that must lie in a range: the least and the largest; an axis' size, or that less one, as `src-1`."""

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class GraphSpec:
    """One graph of a bundle: its file and, in order, its inputs and outputs."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def names(self, prefix: str) -> list[str]:
        """The inputs whose name starts with `prefix` (`memory.`, `state.`)."""
        return [tensor.name for tensor in self.inputs if tensor.name.startswith(prefix)]


class Runtime(Protocol):
    """Runs a bundle's graphs. Values stay where the runtime keeps them until `numpy` asks for one."""

    name: str
    provider: str
    """What really runs the graphs, read from the runtime itself."""
    precision: str
    """In which the graphs compute: fp32, fp16 or int8; fp64 for the reference that measures noise."""
    graphs: Mapping[str, GraphSpec]
    max_batch: int | None
    """Sentences that it takes at a time; None: any number."""

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]: ...

    def numpy(self, value: Value) -> np.ndarray: ...

    def select_rows(self, value: Value, index: np.ndarray) -> Value | None:
        """Of a value (batch, ...) the rows `index`, in memory of their own; None: it stays whole."""

    def close(self) -> None:
        """Frees what it holds; nothing runs afterwards."""
