"""Comparison of an exported graph with its torch module: each shape and each output by itself.

A float may differ by `relative` of its own value and `of_scale` of the output's largest value at any shape; beyond that
only by the noise: how far the module's own precision is from fp64 on the same inputs. Integers and booleans are exact,
except for candidates that tie within rounding. NaN and infinities are right where torch returns the very same ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_attn.errors import ExportError
from edge_attn.parity.metrics import absolute_difference, largest
from edge_attn.spec import GraphSpec, TensorSpec

NOISE_FACTOR = 4.0
"""Safety factor of the noise: the graph rounds at other places than torch."""
MAX_MISMATCHES = 0.01
"""Share of an output's integers that may differ in one draw of inputs: candidates that tie swap places."""


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted differences of floats."""

    relative: float
    """Share of the value itself."""
    of_scale: float
    """Share of the output's largest value at any shape."""
    unmeasured: float
    """The same for a module that does not run in fp64, so that its noise is unknown."""
    limit: float
    """Upper limit of the noise, as a share of the scale of at least 1."""


SINGLE = Tolerance(relative=1e-5, of_scale=1e-6, unmeasured=1e-4, limit=1e-3)
"""In fp32 graphs differ from torch by about 1e-6 of the scale."""
HALF = Tolerance(relative=1e-2, of_scale=2e-3, unmeasured=1e-2, limit=5e-2)
"""fp16 has a rounding unit of 5e-4."""


def run_module(module: nn.Module, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a module without gradients, in the order of their export."""
    with torch.no_grad():
        return flatten(module(*(torch.from_numpy(value) for value in inputs)))


def flatten(outputs: Any) -> list[np.ndarray]:
    """Return the tensors of a module's nested outputs in the order of their export, without None."""
    if isinstance(outputs, Tensor):
        return [outputs.numpy()]
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [tensor for part in parts if part is not None for tensor in flatten(part)]


def check_repeatable(
    module: nn.Module,
    inputs: Sequence[np.ndarray],
    run: Callable[[nn.Module, Sequence[np.ndarray]], list[np.ndarray]] = run_module,
) -> None:
    """Check that a module returns the same values when it runs twice on the same inputs.

    Args:
        module: the module to export.
        inputs: its inputs.
        run: function that calls it.

    Raises:
        ExportError: it does not; the error names a random module.
    """
    try:
        runs = run(module, inputs), run(module, inputs)
    except Exception:  # the exporter reports it, with the failing submodule
        return
    for index, (first, second) in enumerate(zip(*runs, strict=True)):
        difference, scale = np.inf, 1.0
        if first.shape == second.shape:
            difference = largest(absolute_difference(first.astype(np.float64), second.astype(np.float64)))
            scale = _scale(first)
        if not difference <= SINGLE.of_scale * scale:
            raise ExportError(
                f"{type(module).__name__} is random or keeps state between calls: run twice on the same inputs, its "
                f"output {index} differs by {difference:.3g} "
                "(dropout with training=True, torch.rand and attributes that forward changes do this)"
            )


@dataclass(frozen=True)
class _Pending:
    """A float output at one shape whose difference depends on the scale of all shapes."""

    where: str
    excess: float
    """Largest difference beyond `relative`."""
    bound: float
    """Bound from the noise; NaN if the module does not run in fp64."""
    difference: float


class Comparison:
    """Collects the outputs of a graph and of its module, shape by shape."""

    def __init__(
        self,
        module: nn.Module,
        spec: GraphSpec,
        run: Callable[[nn.Module, Sequence[np.ndarray]], list[np.ndarray]] = run_module,
    ) -> None:
        self._module, self._spec, self._run = module, spec, run
        self._double: nn.Module | None = None
        tensors = [*module.parameters(), *module.buffers()]
        half = any(tensor.dtype == torch.float16 for tensor in tensors)
        half |= any(tensor.dtype == "float16" for tensor in (*spec.inputs, *spec.outputs))
        self._tolerance = HALF if half else SINGLE
        self._scales: dict[str, float] = {}
        self._pending: dict[str, list[_Pending]] = {}
        self._compared: set[str] = set()
        self._last_inputs: Sequence[np.ndarray] = ()
        self.worst = 0.0
        """Largest difference of a float."""

    def add(
        self, where: str, inputs: Sequence[np.ndarray], actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]
    ) -> str:
        """Compare the outputs at one shape.

        Args:
            where: graph and sizes, for errors.
            inputs: inputs of both.
            actual: outputs of the graph.
            expected: outputs of the module.

        Returns:
            A sentence if a few integers differ. Those that tie within rounding do not with other inputs.

        Raises:
            ExportError: an output has another shape, other NaN or infinities, or too many other integers.
        """
        integers: list[tuple[str, np.ndarray, np.ndarray]] = []
        precise: list[list[np.ndarray] | None] = []  # of one entry, once it is needed
        for index, (tensor, value, reference) in enumerate(zip(self._spec.outputs, actual, expected, strict=True)):
            output = f"{where}: {tensor.name}"
            if value.shape != reference.shape:
                raise ExportError(f"{output} has shape {value.shape}, torch returns {reference.shape}")
            if not np.issubdtype(value.dtype, np.floating):
                integers.append((output, value, reference))
                continue
            a, b = value.astype(np.float64), reference.astype(np.float64)
            self._same_infinities(output, a, b, inputs)
            finite = np.isfinite(b)
            if not finite.any():
                continue
            self._compared.add(tensor.name)
            self._scales[tensor.name] = max(self._scales.get(tensor.name, 0.0), _scale(b))
            differences = absolute_difference(a, b)[finite]
            excess = largest(differences - self._tolerance.relative * np.abs(b[finite]))
            difference = largest(differences)
            self.worst = max(self.worst, difference)
            if excess <= self._tolerance.of_scale * _scale(b):
                continue
            if not precise:
                precise.append(self._run_double(inputs))
            bound = np.nan if precise[0] is None else self._noise(precise[0][index], b)
            self._pending.setdefault(tensor.name, []).append(_Pending(output, excess, bound, difference))
            self._last_inputs = inputs
        sentences = [self._integers(*triple, inputs) for triple in integers]  # after the floats that they come from
        return next((sentence for sentence in sentences if sentence), "")

    def conclude(self) -> None:
        """Judge what depends on the scale of all shapes.

        Raises:
            ExportError: an output differs from torch, or torch never returned a finite value to compare it with.
        """
        self._judge_pending()
        for tensor in self._spec.outputs:
            if tensor.dtype.startswith("float") and tensor.name not in self._compared:
                raise ExportError(
                    f"{tensor.name} is empty, NaN or infinite at every checked shape: nothing of it could be compared"
                )

    def _judge_pending(self) -> None:
        """Raise if a float differs by more than the scale of the shapes so far and the noise allow."""
        for tensor in self._spec.outputs:
            scale = self._scales.get(tensor.name, 0.0)
            for pending in self._pending.get(tensor.name, []):
                share = self._tolerance.unmeasured if np.isnan(pending.bound) else self._tolerance.of_scale
                noise = min(np.nan_to_num(pending.bound), self._tolerance.limit * max(scale, 1.0))
                bound = max(share * scale, noise)
                if not pending.excess <= bound:
                    check_repeatable(self._module, self._last_inputs, self._run)
                    raise ExportError(
                        f"{pending.where} differs from torch by {pending.difference:.3g}; values up to {scale:.3g} may "
                        f"differ by {self._tolerance.relative:.0e} of the value and {bound:.3g}"
                    )

    def _integers(self, output: str, value: np.ndarray, reference: np.ndarray, inputs: Sequence[np.ndarray]) -> str:
        """Return a sentence if integers differ, or raise if they are too many to be ties."""
        differing = int((value != reference).sum())
        if not differing:
            return ""
        kind = "booleans" if value.dtype == bool else "integers"
        sentence = f"{output}: {differing} of {value.size} {kind} differ from torch"
        if differing > max(2, MAX_MISMATCHES * value.size):  # two candidates that swap places are two integers
            self._judge_pending()
            check_repeatable(self._module, inputs, self._run)
            raise ExportError(sentence)
        return sentence

    def _same_infinities(self, output: str, a: np.ndarray, b: np.ndarray, inputs: Sequence[np.ndarray]) -> None:
        """Raise if NaN or infinities are not where torch returns the same ones."""
        wrong = ~np.isfinite(absolute_difference(a, b))
        if wrong.any():
            check_repeatable(self._module, inputs, self._run)
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ExportError(
                f"{output} is {a[at]:.3g} at {at} where torch returns {b[at]:.3g}, and so at {wrong.sum()} places"
            )

    def _noise(self, precise: np.ndarray, reference: np.ndarray) -> float:
        """Return the noise of one output: NOISE_FACTOR times its largest difference from fp64."""
        if precise.shape != reference.shape:
            return 0.0
        difference = absolute_difference(precise.astype(np.float64), reference)
        return NOISE_FACTOR * largest(difference[np.isfinite(difference)])

    def _run_double(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """Return the outputs of the module in fp64, or None if it does not run there."""
        try:
            if self._double is None:
                self._double = copy.deepcopy(self._module).double()
            doubles = [v.astype(np.float64) if np.issubdtype(v.dtype, np.floating) else v for v in inputs]
            return self._run(self._double, doubles)
        except Exception:  # a module may fix its dtype, and torch's errors share no class
            return None


def check_sizes(where: str, tensor: TensorSpec, sizes: Mapping[str, int], actual: np.ndarray) -> None:
    """Check that an output has the sizes of its axes.

    Raises:
        ExportError: it has other ones.
    """
    axes = zip(tensor.shape, actual.shape, strict=False)
    expected = [sizes.get(axis, size) if isinstance(axis, str) else axis for axis, size in axes]
    if len(tensor.shape) != actual.ndim or expected != list(actual.shape):
        raise ExportError(f"{where}: {tensor.name} has shape {actual.shape}, expected {tensor}")


def _scale(values: np.ndarray) -> float:
    """Return the largest absolute finite value, 0 if there is none."""
    magnitudes = np.abs(values.astype(np.float64))
    return largest(magnitudes[np.isfinite(magnitudes)])
