"""Figures of L1 and L2: differences between two runs along the same tokens.

`verify` takes them between a device and golden data. The recorder takes the same ones between the reference in fp64 and
in fp32: that is the noise of each figure.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from edge_attn.parity.metrics import largest
from edge_attn.parity.results import TensorDifference

ENCODER_MEASURES = ("max_abs", "p99", "relative", "cosine")
SECOND_ORDER = ("cosine", "kl")
"""Figures that grow with the square of the difference."""
ABSOLUTE = ("max_abs", "p99", "state")
"""Figures in the unit of an activation, whose size the model chooses."""
LOG_PROBS = {"top_log_probs": "log_prob", "rest": "rest", "projections": "projection"}
"""Names of the figures of L2 by array."""


@dataclass(frozen=True)
class Figure:
    """One measured value."""

    level: str
    name: str
    """The bound's name after its level, and the compared tensor: `max_abs memory.keys`."""
    value: float
    scale: float = 1.0
    """Root mean square of the reference's values for figures of ABSOLUTE, else 1."""
    part: str = ""
    """Compared part of the deployed model, such as a graph or a search."""
    place: Callable[[float], tuple[int, str]] | None = field(default=None, compare=False)
    """Return the sentence and the place in it of the first difference outside of a bound, or of the largest."""

    @property
    def key(self) -> str:
        """Return the name with its level: `L1.max_abs memory.keys`."""
        return f"{self.level}.{self.name}"

    @property
    def bound(self) -> str:
        """Return the name of the bound: `L1.max_abs`."""
        return self.key.partition(" ")[0]

    @property
    def order(self) -> int:
        """Return the power of the difference with which the value grows."""
        return 2 if self.bound.partition(".")[2] in SECOND_ORDER else 1


class StepFigures:
    """Collects pairs of runs, a sentence or all at once, as arrays with the names of golden data without `steps.`.

    Args:
        per_position: names of the encoder's outputs with one row a source position; the others have one a sentence.
    """

    def __init__(self, per_position: Collection[str] = ()) -> None:
        self._per_position = per_position
        self._encoder, self._states, self._alignment, self._log_probs = (TensorDifference() for _ in range(4))
        self._divergences: list[np.ndarray] = []

    def add_encoder(
        self, actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], sentence: int = 0
    ) -> None:
        """Add outputs of the encoder by name, (rows, ...)."""
        for name, value in actual.items():
            self._encoder.add(name, value, expected[name], sentence)

    def add_steps(
        self, actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], sentence: int = 0
    ) -> None:
        """Add outputs of steps: projections of the states, alignments, and the summary of the log-probabilities."""
        for name, value in actual.items():
            if name in LOG_PROBS:
                self._log_probs.add(LOG_PROBS[name], value, expected[name], sentence)
            elif name == "alignment":
                self._alignment.add(name, value, expected[name], sentence)
            else:
                self._states.add(name, value, expected[name], sentence)
        self._divergences.append(divergence(expected, actual))

    def __iter__(self) -> Iterator[Figure]:
        """Yield the figures in the order of the report."""
        for name in self._encoder.names():
            row = "position" if name in self._per_position else ""
            for measure in ENCODER_MEASURES:
                value, scale = getattr(self._encoder, measure)(name), self._encoder.scale(name)
                place = functools.partial(self._encoder.place, name, row=row)
                if measure not in ABSOLUTE:
                    scale = 1.0
                yield Figure("L1", f"{measure} {name}", value, scale, "encoder", place)
        for name in self._states.names():
            value, place = self._states.max_abs(name), functools.partial(self._states.place, name, row="step")
            yield Figure("L1", f"state {name}", value, self._states.scale(name), "step", place)
        for level, difference in (("L1", self._alignment), ("L2", self._log_probs)):
            for name in difference.names():
                place = functools.partial(difference.place, name, row="step")
                yield Figure(level, name, difference.max_abs(name), 1.0, "step", place)
        if self._divergences:
            yield Figure("L2", "kl", largest(np.concatenate(self._divergences)), part="step")

    def noise(self, factor: float) -> dict[str, float]:
        """Return the figures times `factor`, to the power of their order, by key; 0 for what is not finite."""
        with np.errstate(invalid="ignore"):
            values = {figure.key: factor**figure.order * figure.value for figure in self}
        return {key: value if np.isfinite(value) else 0.0 for key, value in values.items()}


def divergence(expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the KL divergence of each step from the reference, over the best entries and the rest.

        sum p log(p / q) - p + q

    is of second order in their difference even where rounding means that p and q do not quite sum to one.
    """
    p, q = (
        np.concatenate([rows["top_log_probs"], rows["rest"][:, None]], 1).astype(np.float64)
        for rows in (expected, actual)
    )  # (steps, TOP + 1)
    with np.errstate(invalid="ignore"):
        surprise = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))  # p log p is 0 where p is 0
    result: np.ndarray = (surprise - np.exp(p) + np.exp(q)).sum(1)
    return result
