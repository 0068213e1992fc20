"""Inputs and outputs of graphs, and the interface of the runtimes that run them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from edge_attn.errors import UsageError
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
    """Inclusive (min, max) of an input. For integers, an end may be an axis name, or '<axis>-1'."""

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


@dataclass(frozen=True)
class InputSpec(TensorSpec):
    """An input of a user's module: what its values must fulfill beside their range."""

    order: str = ""
    """Order of the values along the first axis: "ascending", "descending", or any if empty."""
    some: str = ""
    """Axis of a boolean mask along which at least one value is True; none if empty."""


@dataclass(frozen=True)
class Axis:
    """Sizes that a dynamic axis takes.

    Raises:
        UsageError: no size fits.
    """

    minimum: int = 1
    maximum: int | None = None
    multiple: int = 1

    def __post_init__(self) -> None:
        numbers = (self.minimum, self.multiple, 1 if self.maximum is None else self.maximum)
        if any(not isinstance(number, int) or number < 1 for number in numbers):
            raise UsageError(f"the sizes of an axis are integers of at least 1, got {self}")
        if self.maximum is not None and self.fit(self.minimum) < self.minimum:
            raise UsageError(f"no size fits {self}")

    def fit(self, size: int) -> int:
        """Return the nearest size of at least `size` that fits, or the largest that fits."""
        size = -(-max(size, self.minimum) // self.multiple) * self.multiple
        return size if self.maximum is None else min(size, self.maximum // self.multiple * self.multiple)

    def __contains__(self, size: int) -> bool:
        return self.minimum <= size and size % self.multiple == 0 and (self.maximum is None or size <= self.maximum)


@dataclass(frozen=True)
class ModuleSpec(GraphSpec):
    """The graph of a user's module, and the evidence that it is right."""

    axes: Mapping[str, Axis] = field(default_factory=dict)
    """Sizes of the dynamic axes that are described."""
    exporter: str = ""
    """Exporter of torch that wrote the graph: "torch.export" or "TorchScript"."""
    max_abs: float = 0.0
    """Largest difference from torch over all compared shapes."""
    shapes: tuple[Mapping[str, int], ...] = ()
    """Sizes of the axes at which the graph was compared with torch."""
    left_out: tuple[str, ...] = ()
    """Sizes that were not compared, each with the reason: torch does not run the module at them."""

    def summary(self) -> str:
        """Return one line about the export."""
        text = f"{self.file}: by {self.exporter}, compared with torch at {len(self.shapes)} shapes"
        text += f", largest difference {self.max_abs:.2g}"
        return text + (f"; left out: {'; '.join(self.left_out)}" if self.left_out else "")


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
