"""Results of a comparison between a runtime and the reference. Every comparison is written so that NaN is outside."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edge_attn.parity.metrics import largest


@dataclass(frozen=True)
class Measurement:
    """One comparison: what was measured, what bounds it."""

    level: str
    name: str
    """The bound's name after its level, and what was compared: `max_abs memory.keys`."""
    value: float
    bound: float

    @property
    def ok(self) -> bool:
        return bool(self.value <= self.bound)  # NaN is not

    def __str__(self) -> str:
        mark = "ok  " if self.ok else "FAIL"
        return f"{mark} {self.level} {self.name:<32} {self.value:.3g} (at most {self.bound:.3g})"


@dataclass(frozen=True)
class TokenMismatch:
    """One sentence on which the candidate chose otherwise than the reference."""

    sentence: int
    where: str
    """`greedy`, `beam`, or the variation of L5."""
    step: int
    """The first differing step, from 0."""
    reference: int
    candidate: int
    """The tokens there; -1 past a hypothesis' end."""
    margin: float
    """By the reference: how much better its own choice is; infinite where it did not record that."""
    noise: float

    @property
    def within_noise(self) -> bool:
        return bool(abs(self.margin) <= self.noise)

    def __str__(self) -> str:
        verdict = "excused: a tie below the noise" if self.within_noise else "NOT excused"
        return (
            f"{self.where}: sentence {self.sentence}, step {self.step}: token {self.candidate} for {self.reference}, "
            f"margin {self.margin:.3g}, noise {self.noise:.3g} ({verdict})"
        )


@dataclass
class LevelResult:
    """What one level of the ladder found."""

    name: str
    status: str = "not requested"
    """holds, fails, not requested or not tested."""
    reason: str = ""
    findings: list[Measurement] = field(default_factory=list)
    flips: list[TokenMismatch] = field(default_factory=list)

    def close(self) -> LevelResult:
        holds = bool(self.findings) and all(finding.ok for finding in self.findings)
        self.status = "holds" if holds else "fails"
        return self


class TensorDifference:
    """Gathers pairs of tensors under a name, and says how far apart they are."""

    def __init__(self) -> None:
        self._apart: dict[str, list[np.ndarray]] = {}
        self._squares: dict[str, np.ndarray] = {}

    def add(self, name: str, found: np.ndarray, expected: np.ndarray) -> None:
        if found.shape != expected.shape:
            self._apart.setdefault(name, []).append(np.array([np.inf]))
            return
        a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
        self._apart.setdefault(name, []).append(np.abs(a - b))
        sums = np.array([((a - b) ** 2).sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()])
        self._squares[name] = self._squares.get(name, np.zeros(4)) + sums

    def names(self) -> list[str]:
        return list(self._apart)

    def max_abs(self, name: str) -> float:
        return largest(np.concatenate(self._apart[name]))

    def p99(self, name: str) -> float:
        return float(np.quantile(np.concatenate(self._apart[name]), 0.99))

    def relative(self, name: str) -> float:
        apart, _, expected, _ = self._squares.get(name, np.array([np.inf, 1.0, 1.0, 0.0]))
        return float(np.sqrt(apart / expected)) if expected > 0 else float(np.sqrt(apart))

    def cosine(self, name: str) -> float:
        _, found, expected, product = self._squares.get(name, np.array([0.0, 1.0, 1.0, 0.0]))
        if found == 0 and expected == 0:
            return 0.0
        return float(max(1.0 - product / np.sqrt(found * expected), 0.0)) if found * expected > 0 else 1.0
