"""Hypotheses of a search: backtrace, score and ranking."""

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
    """Token ids without bos and eos."""
    log_prob: float
    """The model's log-probability, summed over the tokens and, if finished, the end symbol. No option changes it."""
    score: float
    """Ranking score: log_prob divided by the length penalty, with the options' other penalties included."""
    finished: bool
    """False where max_length ended the hypothesis."""
    alignment: np.ndarray | None = field(default=None, compare=False)
    """Attention weights (tgt, src), the end symbol's row last if finished; None if not requested or not available."""


class FinishedHypothesis(NamedTuple):
    """End of a hypothesis in the beam, from which it is read back."""

    score: float
    """Sum of the step scores, before the penalties on the whole hypothesis."""
    log_prob: float
    row: int
    beam_index: int
    """Index in the beam after its last step that was no end symbol."""
    steps: int
    finished: bool


@dataclass
class BeamHistory:
    """Live hypotheses at each step: tokens and parents as nested lists (row, index), alignments (rows, width, src)."""

    tokens: list[list[list[int]]]
    parents: list[list[list[int]]]
    alignments: list[np.ndarray] | None

    def backtrace(self, end: FinishedHypothesis) -> list[int]:
        """Return the indices of the hypothesis in the beam: before the first step, and after each one."""
        indices = [end.beam_index]
        for step in reversed(range(end.steps)):
            indices.append(self.parents[step][end.row][indices[-1]])
        return indices[::-1]

    def read_tokens(self, end: FinishedHypothesis) -> tuple[int, ...]:
        """Return the tokens of the hypothesis."""
        pairs = zip(self.tokens, self.backtrace(end)[1:], strict=False)
        return tuple(step[end.row][index] for step, index in pairs)

    def read_alignment(self, end: FinishedHypothesis) -> np.ndarray | None:
        """Return the attention weights (tgt, src) of the hypothesis, with the end symbol's row if it is finished."""
        if self.alignments is None:
            return None
        indices = self.backtrace(end)[: end.steps + end.finished]
        pairs = zip(self.alignments, indices, strict=False)
        return np.stack([step[end.row, index] for step, index in pairs])


def select_hypotheses(
    searches: Sequence[Sequence[FinishedHypothesis]],
    history: BeamHistory,
    config: SearchConfig,
    source_length: int,
    alignments: bool,
) -> list[Hypothesis]:
    """Return the hypotheses of one sentence, best first.

    Groups compete for the `n_best` places. Samples and alternatives have one place each.

    Args:
        searches: ends of the hypotheses of each search of the sentence.
        history: live hypotheses at each step.
        config: search options.
        source_length: source tokens of the sentence, without padding.
        alignments: whether the hypotheses contain their attention weights.
    """
    independent = config.sample or config.alternatives > 0
    pools = searches if independent else [[end for ends in searches for end in ends]]
    hypotheses: list[Hypothesis] = []
    for pool in pools:
        scored = [(_score(end, history, config, source_length), end) for end in pool]
        scored.sort(key=lambda item: (not item[1].finished, -item[0]))
        unique: dict[tuple[tuple[int, ...], bool], Hypothesis] = {}  # two groups may end with the same tokens
        for score, end in scored:
            if len(unique) < config.n_best:
                tokens, weights = history.read_tokens(end), history.read_alignment(end) if alignments else None
                hypothesis = Hypothesis(tokens, end.log_prob, score, end.finished, weights)
                unique.setdefault((tokens, end.finished), hypothesis)
        hypotheses += unique.values()
    # the model returns NaN, or no token can follow: a result that cannot be mistaken for a translation
    return hypotheses or [Hypothesis((), np.nan, np.nan, False)]


def _score(end: FinishedHypothesis, history: BeamHistory, config: SearchConfig, source_length: int) -> float:
    score = end.score / length_penalty(max(end.steps + end.finished, 1), config)
    if config.coverage_penalty:
        weights = history.read_alignment(end)
        assert weights is not None  # check() refuses a coverage penalty without alignments
        score += coverage_penalty(weights[:, :source_length], config.coverage_penalty)
    return score
