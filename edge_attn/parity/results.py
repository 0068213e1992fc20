"""Results of a comparison between a runtime and the reference.

Every comparison is written so that NaN and infinity fail, except where the reference has the very same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edge_attn.parity.metrics import absolute_difference, largest


@dataclass(frozen=True)
class Measurement:
    """One measured value and its bound."""

    level: str
    name: str
    """The bound's name after its level, and the compared tensor: `max_abs memory.keys`."""
    value: float
    bound: float
    part: str = ""
    """Compared part of the deployed model, such as a graph or a search."""
    sentence: int = -1
    """Sentence with the first difference outside of the bound, or with the largest one; -1 if there is none."""
    place: str = ""
    """Place of that difference in the sentence, `step 2`, or outside of sentences: `source entry 2911 'ibex'`."""

    @property
    def ok(self) -> bool:
        """True if the value is within the bound; NaN never is."""
        return bool(self.value <= self.bound)

    @property
    def where(self) -> str:
        """Return the sentence and the place of the difference; empty if there is none."""
        return ", ".join(filter(None, [f"sentence {self.sentence}" if self.sentence >= 0 else "", self.place]))

    def __str__(self) -> str:
        mark = "ok  " if self.ok else "FAIL"
        where = f" at {self.where}" if self.where and not self.ok else ""
        return f"{mark} {self.level} {self.name:<32} {self.value:.3g} (at most {self.bound:.3g}){where}"


@dataclass(frozen=True)
class TokenMismatch:
    """A sentence for which the candidate's tokens differ from the reference's."""

    sentence: int
    where: str
    """`greedy`, `beam`, or the variation of L5."""
    step: int
    """First differing step, from 0."""
    reference: int
    candidate: int
    """Tokens at that step; -1 after the end of a hypothesis."""
    margin: float
    """Margin of the reference between the two tokens; infinite if it was not recorded."""
    noise: float
    source: str = ""
    """The source sentence."""
    before: str = ""
    """Text of the target before that step, which both have in common."""
    reference_piece: str = ""
    candidate_piece: str = ""
    """Vocabulary entries of the two tokens."""
    reference_text: str = ""
    candidate_text: str = ""
    """The two complete translations."""
    reason: str = ""
    """Reason why there is no margin, if there is none."""

    @property
    def within_noise(self) -> bool:
        """True if the reference's own margin is not above its noise."""
        return bool(abs(self.margin) <= self.noise)

    def __str__(self) -> str:
        verdict = "excused: a tie below the noise" if self.within_noise else "NOT excused"
        margin = f"margin {self.margin:.3g}, noise {self.noise:.3g}"
        if not np.isfinite(self.margin):
            margin = f"no margin to excuse it: {self.reason}" if self.reason else "no margin to excuse it"
        place = f"{self.where}: sentence {self.sentence}, step {self.step}"
        return f"{place}: token {self.candidate} for {self.reference}, {margin} ({verdict})"

    def texts(self) -> list[str]:
        """Return the source, both translations and the differing pieces, one a line; empty if none was recorded."""
        if not (self.reference_text or self.candidate_text or self.source):
            return []
        after = f"after {self.before!r}" if self.before else "at the beginning"
        pieces = f"{self.candidate_piece!r} instead of {self.reference_piece!r}" if self.reference_piece else "missing"
        return [
            f"source     {self.source}",
            f"reference  {self.reference_text}",
            f"device     {self.candidate_text}",
            f"differs    {pieces} {after}",
        ]


@dataclass
class LevelResult:
    """Result of one verification level."""

    name: str
    status: str = "not requested"
    """holds, fails, not requested or not tested."""
    reason: str = ""
    measurements: list[Measurement] = field(default_factory=list)
    mismatches: list[TokenMismatch] = field(default_factory=list)
    seconds: float = 0.0
    """Duration, which levels that are computed together share."""

    def conclude(self) -> LevelResult:
        """Set the status from the measurements. A level without any fails."""
        holds = bool(self.measurements) and all(measurement.ok for measurement in self.measurements)
        self.status = "holds" if holds else "fails"
        return self


class TensorDifference:
    """Differences between pairs of tensors, collected under a name."""

    def __init__(self) -> None:
        self._differences: dict[str, list[np.ndarray]] = {}
        self._squares: dict[str, np.ndarray] = {}
        self._rows: dict[str, list[tuple[int, np.ndarray]]] = {}
        self._exact: set[str] = set()

    def add(self, name: str, actual: np.ndarray, expected: np.ndarray, sentence: int = -1) -> None:
        """Add a pair of tensors (rows, ...), perhaps those of one sentence.

        Different shapes count as an infinite difference.
        """
        if actual.shape != expected.shape:
            self._differences.setdefault(name, []).append(np.array([np.inf]))
            self._rows.setdefault(name, []).append((sentence, np.array([np.inf])))
            return
        a, b = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
        difference = absolute_difference(a, b)
        self._differences.setdefault(name, []).append(difference)
        if actual.size:
            rows = difference.reshape(len(actual), -1).max(1)  # (rows)
            self._rows.setdefault(name, []).append((sentence, rows))
        same = (difference == 0) & ~np.isfinite(b)  # the reference's own NaN and infinities have no square
        a, b, difference = a[~same], b[~same], difference[~same]
        if not np.issubdtype(actual.dtype, np.floating):
            self._exact.add(name)
        sums = np.array([(difference**2).sum(), (a * a).sum(), (b * b).sum(), (a * b).sum(), b.size])
        self._squares[name] = self._squares.get(name, np.zeros(5)) + sums

    def names(self) -> list[str]:
        """Return the names in the order in which they were added."""
        return list(self._differences)

    def max_abs(self, name: str) -> float:
        """Return the largest absolute difference."""
        return largest(np.concatenate(self._differences[name]))

    def place(self, name: str, bound: float, row: str) -> tuple[int, str]:
        """Return the sentence and the place in it of the first difference outside of `bound`, or of the largest.

        Args:
            name: name of the tensors.
            bound: largest accepted difference.
            row: noun for a row of the tensors, such as `step`; empty where they have no rows to name.
        """
        pairs = self._rows.get(name, [])
        outside = [(sentence, int(np.argmin(rows <= bound))) for sentence, rows in pairs if not (rows <= bound).all()]
        if outside:
            sentence, index = min(outside)
        elif pairs:
            sentence, rows = max(pairs, key=lambda pair: float(pair[1].max()))
            index = int(rows.argmax())
        else:
            return -1, ""
        return sentence, f"{row} {index}" if row else ""

    def p99(self, name: str) -> float:
        """Return the 99th percentile of the absolute differences."""
        return float(np.quantile(np.concatenate(self._differences[name]), 0.99))

    def scale(self, name: str) -> float:
        """Return the root mean square of the expected values; 0 for integers and booleans, which do not round."""
        if name in self._exact:
            return 0.0
        _, _, expected, _, count = self._squares.get(name, np.zeros(5))
        return float(np.sqrt(expected / max(count, 1.0)))

    def relative(self, name: str) -> float:
        """Return the norm of the difference, divided by the norm of the expected values."""
        difference, _, expected, *_ = self._squares.get(name, np.array([np.inf, 1.0, 1.0, 0.0, 1.0]))
        return float(np.sqrt(difference / expected)) if expected > 0 else float(np.sqrt(difference))

    def cosine(self, name: str) -> float:
        """Return 1 - cosine similarity, at least 0."""
        _, actual, expected, product, _ = self._squares.get(name, np.array([0.0, 1.0, 1.0, 0.0, 1.0]))
        if actual == 0 and expected == 0:
            return 0.0
        return float(max(1.0 - product / np.sqrt(actual * expected), 0.0)) if actual * expected > 0 else 1.0
