"""Bounds of each verification level, by precision.

The bound of a figure is the largest of the ceiling in the code, the ceiling times the scale of large activations, and
the recorded noise of the reference, up to NOISE_LIMIT ceilings. A manifest may only be stricter. `--override` sets a
bound for a single run and is listed in its report. Both are taken as they are, without scale and noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edge_attn.errors import BundleError, UsageError
from edge_attn.parity.figures import Figure
from edge_attn.parity.results import Measurement

LEVELS = {
    "L0": "op: each op against its float64 oracle",
    "L1": "graph: encoder outputs, states and alignments",
    "L2": "step: log-probabilities, teacher-forced",
    "L3": "sentence: greedy and beam, free-running",
    "L4": "corpus: BLEU and chrF",
    "L5": "device: rerun, batch, padding and order",
}
"""Levels by name. `verify` runs those that the task has, L1, L2, L3 and L5 for translation."""

BOUNDS: dict[str, dict[str, float]] = {
    "fp32": {
        "L1.max_abs": 1e-4,
        "L1.p99": 2e-5,
        "L1.relative": 1e-5,
        "L1.cosine": 1e-6,
        "L1.alignment": 1e-5,
        "L1.state": 5e-5,
        "L1.probe": 2e-4,
        "L2.log_prob": 1e-4,
        "L2.rest": 1e-4,
        "L2.projection": 5e-5,
        "L2.kl": 1e-6,
        "L2.top1": 0.0,
        "L2.probe": 3e-4,
        "L2.candidates": 1e-4,
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
        "L1.probe": 5e-2,
        "L2.log_prob": 1e-1,
        "L2.rest": 1e-1,
        "L2.projection": 3e-2,
        "L2.kl": 1e-4,
        "L2.top1": 0.01,
        "L2.probe": 1e-1,
        "L2.candidates": 0.1,
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
        "L1.probe": 1.0,
        "L2.log_prob": 2.0,
        "L2.rest": 2.0,
        "L2.projection": 1.0,
        "L2.kl": 5e-2,
        "L2.top1": 0.01,
        "L2.probe": 2.0,
        "L2.candidates": 0.1,
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
"""Largest accepted value of each measurement, by precision.

max_abs and p99 are absolute differences, relative a ratio of norms, cosine 1 - cosine, state a difference of
projections. probe is the same for the short inputs that look up every entry, and candidates a difference between the
candidates of a step and its own log-probabilities, or of the logarithm of their sum from 0. kl is the divergence over
the 32 best and the rest. top1, tokens, n_best and text are shares of mismatches that are not within the noise; excused
is the share of all steps with a mismatch that is. chrf is 1 - chrF of the texts against the reference's own. The
quality that fp16 and int8 may lose against human references is measured on a corpus, with `evaluate`."""


NOISE_LIMIT = 30.0
"""Largest bound that noise can cause, in ceilings: in fp32 3e-3 of a log-probability, 0.3 % of a probability. Where
the reference itself is less certain, a comparison with it proves too little."""


@dataclass(frozen=True, eq=False)
class Bounds(Mapping[str, float]):
    """Bounds of one run by name, before the noise and the scale of a figure."""

    limits: Mapping[str, float]
    fixed: frozenset[str] = frozenset()
    """Names whose bound the manifest or the user has set."""

    def __getitem__(self, name: str) -> float:
        return self.limits[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.limits)

    def __len__(self) -> int:
        return len(self.limits)

    def measurement(self, figure: Figure, noise: Mapping[str, float]) -> Measurement:
        """Return a figure with its bound.

        Args:
            figure: the measured value.
            noise: noise of the reference by the key of a figure; a figure without any has its ceiling.
        """
        bound = self[figure.bound]
        if figure.bound not in self.fixed:
            bound *= max(figure.scale, 1.0)
            bound = max(bound, min(noise.get(figure.key, 0.0), NOISE_LIMIT * bound))
        place = figure.place(bound) if figure.place else (-1, "")
        return Measurement(figure.level, figure.name, figure.value, bound, figure.part, *place)


def bounds(precision: str, stricter: Mapping[str, float], overrides: Mapping[str, float]) -> Bounds:
    """Return the bounds of one run, by name.

    Raises:
        BundleError: the manifest is looser than the code, or names an unknown bound.
        UsageError: an override names an unknown bound, or is not a finite number of at least 0.
    """
    limits = dict(BOUNDS[precision])
    for name, value in stricter.items():
        if name not in limits:
            raise BundleError(f"the manifest's tolerance {name!r} is not a bound; known: {', '.join(limits)}")
        if not value <= limits[name]:
            raise BundleError(f"the manifest's tolerance {name} = {value} is looser than the ceiling {limits[name]}")
        limits[name] = value
    for name, value in overrides.items():
        if name not in limits:
            raise UsageError(f"--override {name!r}: not a bound; known: {', '.join(limits)}")
        if not 0 <= value < np.inf:
            raise UsageError(f"--override {name}: must be a finite number of at least 0, got {value}")
        limits[name] = value
    return Bounds(limits, frozenset({*stricter, *overrides}))
