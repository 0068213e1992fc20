"""Hypotheses of a search: how they are read back, scored and ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from edge_attn.decoding.options import SearchConfig
from edge_attn.decoding.scores import coverage_penalty, length_penalty


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one source."""

    tokens: tuple[int, ...]
    """Without bos and eos."""
    log_prob: float
    """The model's own, summed over the tokens and, if finished, the end symbol; no option changes it."""
    score: float
    """What it is ranked by: log_prob over the length penalty, the other penalties of the options put in."""
    finished: bool
    """False where max_length cut it off."""
    alignment: np.ndarray | None = field(default=None, compare=False)
    """Attention weights (tgt, src), the end symbol's row last if finished; None if not asked for or not there."""


class _End(NamedTuple):
    """Where a hypothesis ended."""

    total: float
    """What it was ranked by, before the penalties on the whole."""
    log_prob: float
    row: int
    place: int
    """In the beam after its last step that was no end symbol."""
    steps: int
    finished: bool


@dataclass
class _Trace:
    """What lived at each step: tokens and parents as nested lists (row, index), to read a hypothesis back from its end,
    and alignments (rows, width, src)."""

    tokens: list[list[list[int]]]
    parents: list[list[list[int]]]
    alignments: list[np.ndarray] | None

    def follow(self, end: _End) -> list[int]:
        """Its indices in the beam: before the first step, and after each."""
        indices = [end.place]
        for step in reversed(range(end.steps)):
            indices.append(self.parents[step][end.row][indices[-1]])
        return indices[::-1]

    def read(self, end: _End) -> tuple[int, ...]:
        pairs = zip(self.tokens, self.follow(end)[1:], strict=False)
        return tuple(step[end.row][index] for step, index in pairs)

    def weights(self, end: _End) -> np.ndarray | None:
        """(tgt, src), the end symbol's row among them if it is finished."""
        if self.alignments is None:
            return None
        indices = self.follow(end)[: end.steps + end.finished]
        pairs = zip(self.alignments, indices, strict=False)
        return np.stack([step[end.row, index] for step, index in pairs])


def _hypotheses(
    searches: Sequence[Sequence[_End]], trace: _Trace, config: SearchConfig, source: int, alignments: bool
) -> list[Hypothesis]:
    """What the searches of one sentence give; groups compete for the places, samples and alternatives have one each."""
    apart = config.sample or config.alternatives > 0
    pools = searches if apart else [[end for ends in searches for end in ends]]
    found: list[Hypothesis] = []
    for pool in pools:
        scored = [(_score(end, trace, config, source), end) for end in pool]
        scored.sort(key=lambda item: (not item[1].finished, -item[0]))
        chosen: dict[tuple[tuple[int, ...], bool], Hypothesis] = {}  # two groups may find the same
        for score, end in scored:
            if len(chosen) < config.n_best:
                tokens, weights = trace.read(end), trace.weights(end) if alignments else None
                said = Hypothesis(tokens, end.log_prob, score, end.finished, weights)
                chosen.setdefault((tokens, end.finished), said)
        found += chosen.values()
    # the model says NaN, or that nothing can follow: an answer that nobody can take for one
    return found or [Hypothesis((), np.nan, np.nan, False)]


def _score(end: _End, trace: _Trace, config: SearchConfig, source: int) -> float:
    score = end.total / length_penalty(max(end.steps + end.finished, 1), config)
    if config.coverage_penalty:
        weights = trace.weights(end)
        assert weights is not None  # _check saw to it
        score += coverage_penalty(weights[:, :source], config.coverage_penalty)
    return score
