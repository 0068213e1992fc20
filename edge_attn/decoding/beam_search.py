"""Beam search, written once in numpy: it drives torch (the reference), ONNX Runtime and TensorRT alike.

Greedy search is a beam of one. Diverse beam search, sampling and alternatives are several searches of each sentence:
each is a row of the arrays here, and their hypotheses are next to each other in the beam of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_attn.decoding.decoder import STEP, StepDecoder, has_alignment, output_sizes
from edge_attn.decoding.hypothesis import BeamHistory, FinishedHypothesis, Hypothesis, select_hypotheses
from edge_attn.decoding.logits_processors import LogitsProcessors, check_suppressed
from edge_attn.decoding.options import SearchConfig
from edge_attn.decoding.sampling import Sampler
from edge_attn.decoding.scores import diverse_order
from edge_attn.errors import BundleError, UsageError
from edge_attn.spec import Runtime
from edge_attn.text.tokenizers import BOS, EOS


def search(
    runtime: Runtime,
    sources: Sequence[Sequence[int]],
    config: SearchConfig,
    alignments: bool = False,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> list[list[Hypothesis]]:
    """Return the `n_best` hypotheses of each source, best first.

    At each step the best 2 * beam continuations of a sentence are ranked. Those among the first `beam` that end with
    eos are finished, and the best `beam` that do not end survive. A sentence is done when `beam` hypotheses are
    finished. Samples are in the order of their numbers, alternatives in the order of their first token's probability.

    Args:
        runtime: encoder and step graphs.
        sources: token ids of each source, eos included.
        config: search options.
        alignments: whether the hypotheses contain their attention weights.
        prefixes: first target tokens of each sentence. One that ends with eos is a whole sentence.

    Raises:
        UsageError: the graph returns too few candidates for this beam, or no alignments where an option needs them; an
            option or a prefix that does not fit the vocabulary or `max_length`.
    """
    check(runtime, config)
    if prefixes is not None and len(prefixes) != len(sources):
        raise UsageError(f"expected a prefix for each of the {len(sources)} sentences, got {len(prefixes)}")
    beam = _Beam(runtime, sources, config, alignments, prefixes)
    for position in range(1, config.max_length + 1):
        if not beam.advance(position):
            break
    beam.finish_truncated()
    searches = config.searches
    return [
        select_hypotheses(
            beam.finished[i * searches : (i + 1) * searches], beam.history, config, len(source), alignments
        )
        for i, source in enumerate(sources)
    ]


def check(runtime: Runtime, config: SearchConfig) -> None:
    """Check that this model supports the options, before there is a sentence. `search` calls it too.

    Raises:
        UsageError: the graph returns too few candidates for this beam, or no alignments where an option needs them; a
            token to suppress that the vocabulary does not have, or that is the end symbol.
    """
    beam, (candidates, vocabulary) = config.beam, output_sizes(runtime.graphs)
    if not config.sample and candidates < beam + 1 and candidates < vocabulary:
        raise UsageError(
            f"a beam of {beam} needs {beam + 1} candidates a step, this bundle has {candidates}; "
            f"use `beam` {candidates - 1} or less, or export again with --candidates {beam + 1}"
        )
    if config.coverage_penalty and not has_alignment(runtime.graphs):
        raise UsageError("the coverage penalty needs alignments, and this model has no attention that returns them")
    check_suppressed(config.suppress, vocabulary)


class _Beam:
    """Live and finished hypotheses of one batch. A row is one search of one sentence: (rows, width, ...)."""

    def __init__(
        self,
        runtime: Runtime,
        sources: Sequence[Sequence[int]],
        config: SearchConfig,
        alignments: bool,
        prefixes: Sequence[Sequence[int]] | None,
    ) -> None:
        self._decoder = StepDecoder(runtime, sources)
        self._config = config
        self._batch = self._decoder.batch
        self._size = config.beam // config.groups
        self._top = min(config.beam + 1, self._decoder.candidates)
        self._processors = LogitsProcessors(config, prefixes or [()] * self._batch, self._decoder.vocabulary)
        self._sampler = Sampler(config, sources) if config.sample else None
        rows = self._batch * config.searches
        track_alignments = (alignments or config.coverage_penalty) and self._decoder.has_alignment
        self.history = BeamHistory([], [], [] if track_alignments else None)
        self.finished: list[list[FinishedHypothesis]] = [[] for _ in range(rows)]
        self._row_index = np.arange(rows)[:, None]  # (rows, 1)
        self._search_index = np.tile(np.arange(config.searches), self._batch)[:, None]  # (rows, 1)
        self._tokens = np.full((rows, 1), BOS, np.int64)  # (rows, width)
        self._parents = np.zeros((rows, 1), np.int64)  # (rows, width), indices into the beam of the whole sentence
        self._live_scores: np.ndarray = np.zeros((rows, 1))  # (rows, width)
        self._live_log_probs: np.ndarray = self._live_scores  # (rows, width)
        self._prefix_tokens = np.zeros((rows, 1, 0), np.int64)  # (rows, width, position - 1)

    def advance(self, position: int) -> bool:
        """Decode the tokens at `position`, which counts from 1. Return whether a hypothesis is still live."""
        width = self._live_scores.shape[1]
        ids, step_scores, step_log_probs = self._expand(position, width)
        scores = self._flat(self._live_scores[:, :, None] + step_scores)  # (rows, width * continuations)
        ids = self._flat(ids)
        if self._config.groups > 1:
            ranked = diverse_order(scores, ids, self._config)
        else:
            ranked = (-scores).argsort(axis=1, kind="stable")[:, : 2 * self._size]
        flat = ranked + self._row_index * scores.shape[1]  # (rows, 2 * size), as are the next four
        scores, ids, origins = scores.take(flat), ids.take(flat), ranked // step_scores.shape[2]
        if step_log_probs is step_scores:
            log_probs = scores
        else:
            log_probs = self._flat(self._live_log_probs[:, :, None] + step_log_probs).take(flat)
        if not self._select_survivors(scores, log_probs, ids, origins, position):
            return False
        self.history.tokens.append(self._tokens.tolist())
        self.history.parents.append(self._origins.tolist())
        self._parents = self._origins + self._search_index * width
        if self._processors.needs_tokens:
            earlier = np.take_along_axis(self._prefix_tokens, self._origins[:, :, None], 1)
            self._prefix_tokens = np.concatenate([earlier, self._tokens[:, :, None]], 2)
        return True

    def finish_truncated(self) -> None:
        """Finish what is live at `max_length`, where fewer than the beam's size are finished."""
        for row, index in np.argwhere(np.isfinite(self._live_scores)).tolist():
            if len(self.finished[row]) < self._size:
                score, log_prob = float(self._live_scores[row, index]), float(self._live_log_probs[row, index])
                end = FinishedHypothesis(score, log_prob, row, index, len(self.history.tokens), False)
                self.finished[row].append(end)

    def _expand(self, position: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run a step. Return token ids, their scores and their log-probabilities, each (rows, width, continuations)."""
        rows = len(self.finished)
        outputs = self._decoder.step(self._tokens.reshape(self._batch, -1), self._parents.reshape(self._batch, -1))
        if self.history.alignments is not None:
            self.history.alignments.append(self._decoder.read_alignment(outputs).reshape(rows, width, -1))
        if not self._sampler and not self._processors.active(position):
            ids = self._decoder.read(outputs, "candidate_ids")[:, :, : self._top]
            if ids.min() < 0 or ids.max() >= self._decoder.vocabulary:
                raise BundleError(
                    f"the graph {STEP!r} returns candidate_ids from {ids.min()} to {ids.max()}, and its vocabulary has "
                    f"{self._decoder.vocabulary} entries; export the bundle again"
                )
            scores = self._decoder.read(outputs, "candidates")[:, :, : self._top].reshape(rows, width, -1)
            return ids, scores, scores
        log_probs = self._decoder.read(outputs, "log_probs").reshape(rows, width, -1)
        adjusted = self._processors(log_probs, self._prefix_tokens, position)
        ids = self._sampler.draw(adjusted) if self._sampler else _best_ids(adjusted, self._top)
        scores = np.take_along_axis(adjusted, ids, 2)
        return ids, scores, np.take_along_axis(log_probs, ids, 2) if self._processors.penalized else scores

    def _select_survivors(
        self, scores: np.ndarray, log_probs: np.ndarray, ids: np.ndarray, origins: np.ndarray, position: int
    ) -> bool:
        """Finish the continuations that end with eos, and keep the best others. Return whether one is live."""
        size, ends = self._size, ids == EOS
        if not ends.any():
            self._live_scores, self._live_log_probs = scores[:, :size], log_probs[:, :size]
            self._tokens, self._origins = ids[:, :size].copy(), origins[:, :size].copy()
            return True
        ending = np.argwhere(ends[:, :size] & np.isfinite(scores[:, :size])).tolist()
        for row, rank in ending:
            score, log_prob, origin = float(scores[row, rank]), float(log_probs[row, rank]), int(origins[row, rank])
            self.finished[row].append(FinishedHypothesis(score, log_prob, row, origin, position - 1, True))
        scores[ends] = -np.inf
        # the best that do not end, in their order; in a tiny vocabulary dead ones fill the beam
        survivors = ends.argsort(axis=1, kind="stable")[:, :size] + self._row_index * ends.shape[1]
        self._live_scores, self._live_log_probs, self._tokens, self._origins = (
            array.take(survivors) for array in (scores, log_probs, ids, origins)
        )
        self._live_scores[[row for row, _ in ending if len(self.finished[row]) >= size]] = -np.inf
        alive: np.ndarray = np.isfinite(self._live_scores).reshape(self._batch, -1).any(axis=1)
        if not alive.any():
            return False
        self._decoder.drop_finished(alive)
        return True

    def _flat(self, values: np.ndarray) -> np.ndarray:
        """Return (rows, width, continuations) as (rows, width * continuations)."""
        return values.reshape(len(self.finished), -1)


def _best_ids(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the ids of the `count` best tokens, best first: (rows, width, vocab) -> (rows, width, count)."""
    if count < scores.shape[2]:
        ids = np.argpartition(-scores, count - 1, axis=2)[:, :, :count]
        ids.sort(axis=2)  # ties in the order of the vocabulary, as in the graph's candidates
    else:
        ids = np.broadcast_to(np.arange(scores.shape[2]), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, ids, 2), axis=2, kind="stable")
    return np.take_along_axis(ids, order, 2)
