"""What must hold between a runtime and the reference: bounds, comparisons, verdicts.

Every comparison is written so that NaN is outside. The bounds are ceilings: a manifest may only be stricter, and
`--override` loosens one for a single run and stands in its report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_attn.errors import BundleError, UsageError

LEVELS = {
    "L0": "op: each op against its float64 oracle",
    "L1": "graph: encoder outputs, states and alignments",
    "L2": "step: log-probabilities, teacher-forced",
    "L3": "sentence: greedy and beam, free-running",
    "L4": "corpus: BLEU and chrF",
    "L5": "device: rerun, batch, padding and order",
}
RUN_BY_VERIFY = ("L1", "L2", "L3", "L5")

BOUNDS: dict[str, dict[str, float]] = {
    "fp32": {
        "L1.max_abs": 1e-4,
        "L1.p99": 2e-5,
        "L1.relative": 1e-5,
        "L1.cosine": 1e-6,
        "L1.alignment": 1e-5,
        "L1.state": 5e-5,
        "L2.log_prob": 1e-4,
        "L2.rest": 1e-4,
        "L2.projection": 5e-5,
        "L2.kl": 1e-6,
        "L2.top1": 0.0,
        "L3.tokens": 0.0,
        "L3.n_best": 0.0,
        "L3.chrf": 0.0,
        "L3.excused": 0.005,
        "L3.log_prob": 1e-3,
        "L3.score": 1e-4,
        "L3.alignment": 1e-5,
        "L3.text": 0.0,
        "L5.rerun": 0.0,
        "L5.tokens": 0.0,
        "L5.excused": 0.005,
    },
    "fp16": {
        "L1.max_abs": 3e-2,
        "L1.p99": 1e-2,
        "L1.relative": 2e-3,
        "L1.cosine": 1e-5,
        "L1.alignment": 2e-2,
        "L1.state": 2e-2,
        "L2.log_prob": 1e-1,
        "L2.rest": 1e-1,
        "L2.projection": 3e-2,
        "L2.kl": 1e-4,
        "L2.top1": 0.01,
        "L3.tokens": 0.05,
        "L3.n_best": 0.1,
        "L3.chrf": 0.05,
        "L3.excused": 0.005,
        "L3.log_prob": 0.1,
        "L3.score": 1e-2,
        "L3.alignment": 2e-2,
        "L3.text": 0.0,
        "L5.rerun": 0.0,
        "L5.tokens": 0.05,
        "L5.excused": 0.005,
    },
    "int8": {
        "L1.max_abs": 1.0,
        "L1.p99": 0.3,
        "L1.relative": 0.05,
        "L1.cosine": 2e-3,
        "L1.alignment": 0.2,
        "L1.state": 0.5,
        "L2.log_prob": 2.0,
        "L2.rest": 2.0,
        "L2.projection": 1.0,
        "L2.kl": 5e-2,
        "L2.top1": 0.01,
        "L3.tokens": 0.2,
        "L3.n_best": 0.8,
        "L3.chrf": 0.1,
        "L3.excused": 0.005,
        "L3.log_prob": 3.0,
        "L3.score": 0.2,
        "L3.alignment": 0.2,
        "L3.text": 0.0,
        "L5.rerun": 0.0,
        "L5.tokens": 0.2,
        "L5.excused": 0.005,
    },
}
"""By precision: the largest value that holds. max_abs, p99: absolute; relative: of norms; cosine: 1 - cosine; state:
of projections; kl: of the 32 best and the rest; top1, tokens, n_best, text: a share of misses that no margin excuses;
excused: misses that one does, as a share of all steps; chrf: 1 - chrF of the texts against the reference's own. The
quality that fp16 and int8 may lose against human references is measured on a corpus, with `evaluate`."""


def bounds(precision: str, stricter: Mapping[str, float], overrides: Mapping[str, float]) -> dict[str, float]:
    """The bounds of one run.

    Raises:
        BundleError: the manifest is looser than the code, or names no bound.
        UsageError: an override names no bound, or is a number that bounds nothing.
    """
    made = dict(BOUNDS[precision])
    for name, value in stricter.items():
        if name not in made:
            raise BundleError(f"the manifest's tolerance {name!r} is not a bound; known: {', '.join(made)}")
        if not value <= made[name]:
            raise BundleError(f"the manifest's tolerance {name} = {value} is looser than the ceiling {made[name]}")
        made[name] = value
    for name, value in overrides.items():
        if name not in made:
            raise UsageError(f"--override {name!r}: not a bound; known: {', '.join(made)}")
        if not 0 <= value < np.inf:
            raise UsageError(f"--override {name}: must be a finite number of at least 0, found {value}")
        made[name] = value
    return made


@dataclass(frozen=True)
class Finding:
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
class Flip:
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
    def excused(self) -> bool:
        return bool(abs(self.margin) <= self.noise)

    def __str__(self) -> str:
        verdict = "excused: a tie below the noise" if self.excused else "NOT excused"
        return (
            f"{self.where}: sentence {self.sentence}, step {self.step}: token {self.candidate} for {self.reference}, "
            f"margin {self.margin:.3g}, noise {self.noise:.3g} ({verdict})"
        )


@dataclass
class Level:
    """What one level of the ladder found."""

    name: str
    status: str = "not requested"
    """holds, fails, not requested or not tested."""
    reason: str = ""
    findings: list[Finding] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)

    def close(self) -> Level:
        holds = bool(self.findings) and all(finding.ok for finding in self.findings)
        self.status = "holds" if holds else "fails"
        return self


class Distance:
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


CHRF_ORDER, CHRF_BETA = 6, 2


def chrf(found: Sequence[str], expected: Sequence[str]) -> float:
    """chrF2 of texts against other texts (Popović 2015, https://aclanthology.org/W15-3049), from 0 to 1.

    Character n-grams of 1 to 6 without white space; counts are summed over all texts; beta is 2.
    """
    scores = []
    for n in range(1, CHRF_ORDER + 1):
        ours, theirs, shared = 0, 0, 0
        for one, other in zip(found, expected, strict=True):
            a, b = _ngrams(one, n), _ngrams(other, n)
            ours, theirs, shared = ours + a.total(), theirs + b.total(), shared + (a & b).total()
        if ours and theirs:
            scores.append((shared / ours, shared / theirs))
    precision, recall = (float(np.mean(values)) for values in zip(*scores, strict=True)) if scores else (0.0, 0.0)
    if precision + recall == 0:
        return float(list(found) == list(expected))
    return (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall)


def _ngrams(text: str, n: int) -> Counter[str]:
    characters = "".join(text.split())
    return Counter(characters[i : i + n] for i in range(len(characters) - n + 1))


def largest(values: np.ndarray) -> float:
    """The largest value; NaN if there is one, 0 of nothing."""
    return float(np.max(values)) if values.size else 0.0


def first_difference(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """The first step at which two token sequences differ; their common length if one begins with the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
