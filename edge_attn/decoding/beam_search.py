"""Search, written once in numpy: it drives torch (the reference), ONNX Runtime and TensorRT alike.

The model is seen through `Decoding`: the encoder runs once, then each step takes the tokens of the live hypotheses and
their parents, and gives the best candidates after each. States are reordered by the parents inside the graph, and stay
the runtime's values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from edge_attn.decoding.logits_processors import Constraints, check_suppressed
from edge_attn.decoding.options import SearchConfig
from edge_attn.decoding.sampling import Sampler
from edge_attn.decoding.scores import coverage_penalty, diverse_order, length_penalty
from edge_attn.errors import UsageError
from edge_attn.spec import GraphSpec, Runtime, Value
from edge_attn.text.tokenizers import BOS, EOS, PAD


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


def pad_sources(sources: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """source (batch, src) int64 padded with PAD, and source_length (batch) int64."""
    lengths = np.array([len(source) for source in sources], np.int64)
    padded = np.full((len(sources), int(lengths.max())), PAD, np.int64)
    for row, source in zip(padded, sources, strict=True):
        row[: len(source)] = source
    return padded, lengths


class Decoding:
    """One batch of sentences on one runtime."""

    def __init__(self, runtime: Runtime, sources: Sequence[Sequence[int]]) -> None:
        source, lengths = pad_sources(sources)
        self.runtime = runtime
        self.batch = len(sources)
        self.encoded = runtime.run("encoder", {"source": source, "source_length": lengths})
        step = runtime.graphs["step"]
        self._memory = {name: self.encoded[name] for name in step.names("memory.")}
        self._states = step.names("state.")
        self._state = {name: self.encoded[name] for name in self._states}
        self.aligned = _aligned(step)
        self.candidates, self.vocabulary = _sizes(step)
        self._rows = np.arange(self.batch)

    def step(self, tokens: np.ndarray, parents: np.ndarray) -> dict[str, Value]:
        """tokens and parents (batch, beam) int64 -> the step's outputs; its states are kept for the next step."""
        if len(self._rows) < self.batch:
            tokens, parents = tokens[self._rows], parents[self._rows]
        outputs = self.runtime.run("step", {"tokens": tokens, "parents": parents, **self._memory, **self._state})
        self._state = {name: outputs["next_" + name] for name in self._states}
        return outputs

    def read(self, outputs: Mapping[str, Value], name: str) -> np.ndarray:
        """An output of the latest step (batch, ...), zero for sentences that were dropped."""
        value = self.runtime.numpy(outputs[name])
        if len(self._rows) == self.batch:
            return value
        whole = np.zeros((self.batch, *value.shape[1:]), value.dtype)
        whole[self._rows] = value
        return whole

    def drop(self, alive: np.ndarray) -> None:
        """Only sentences that are `alive` (batch) are computed from here on: where the runtime can take rows out of its
        values, and where they are at most half, which pays for the copy."""
        left = np.flatnonzero(alive[self._rows])
        if 2 * len(left) > len(self._rows):
            return
        memory, state = (
            {name: self.runtime.rows(value, left) for name, value in values.items()}
            for values in (self._memory, self._state)
        )
        if all(value is not None for value in (*memory.values(), *state.values())):
            self._memory, self._state, self._rows = memory, state, self._rows[left]


def search(
    runtime: Runtime,
    sources: Sequence[Sequence[int]],
    config: SearchConfig,
    alignments: bool = False,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> list[list[Hypothesis]]:
    """The `n_best` hypotheses of each source, best first: beam search, which with a beam of one is greedy search.

    At each step the best 2 * beam continuations of a sentence are looked at. Those among the first `beam` that end it
    are finished; the best `beam` that do not end it live on. A sentence is done when `beam` hypotheses are finished.

    Every hypothesis begins with its sentence's prefix; one that ends with eos is a whole sentence. Samples come in the
    order of their numbers, alternatives in that of their first token's likelihood.

    Groups, samples and alternatives are so many searches of each sentence: each is a row of the arrays here, and their
    hypotheses stand side by side in the step's beam.

    Raises:
        UsageError: the graph gives too few candidates for this beam, or no alignments where an option needs them; an
            option or a prefix that does not fit the vocabulary or `max_length`.
    """
    check(runtime, config)
    if prefixes is not None and len(prefixes) != len(sources):
        raise UsageError(f"each of the {len(sources)} sentences needs a prefix, found {len(prefixes)} prefixes")
    decoding = Decoding(runtime, sources)
    batch, searches, size = decoding.batch, config.searches, config.beam // config.groups
    rows, keep = batch * searches, min(config.beam + 1, decoding.candidates)
    constraints = Constraints(config, prefixes or [()] * batch, decoding.vocabulary)
    sampler = Sampler(config, sources) if config.sample else None
    trace = _Trace([], [], [] if (alignments or config.coverage_penalty) and decoding.aligned else None)
    first, number = np.arange(rows)[:, None], np.tile(np.arange(searches), batch)[:, None]
    tokens, parents = np.full((rows, 1), BOS, np.int64), np.zeros((rows, 1), np.int64)
    live = own = np.zeros((rows, 1))
    history = np.zeros((rows, 1, 0), np.int64)
    ended: list[list[_End]] = [[] for _ in range(rows)]
    for length in range(1, config.max_length + 1):
        width = live.shape[1]
        outputs = decoding.step(tokens.reshape(batch, -1), parents.reshape(batch, -1))
        if trace.alignments is not None:
            trace.alignments.append(decoding.read(outputs, "alignment").reshape(rows, width, -1))
        if sampler or constraints.at(length):
            log_probs = decoding.read(outputs, "log_probs").reshape(rows, width, -1)
            worth = constraints.apply(log_probs, history, length)
            ids = sampler.draw(worth) if sampler else _best_ids(worth, keep)
            gains = np.take_along_axis(worth, ids, 2)
            says = np.take_along_axis(log_probs, ids, 2) if constraints.penalised else gains
        else:
            ids = decoding.read(outputs, "candidate_ids")[:, :, :keep]
            gains = says = decoding.read(outputs, "candidates")[:, :, :keep].reshape(rows, width, -1)
        totals, ids = (live[:, :, None] + gains).reshape(rows, -1), ids.reshape(rows, -1)
        if config.groups > 1:
            ranked = diverse_order(totals, ids, config)
        else:
            ranked = (-totals).argsort(axis=1, kind="stable")[:, : 2 * size]
        flat = ranked + first * totals.shape[1]
        totals, ids, origins = totals.take(flat), ids.take(flat), ranked // gains.shape[2]
        own = totals if says is gains else (own[:, :, None] + says).reshape(rows, -1).take(flat)
        ends = ids == EOS
        if ends.any():
            ending = np.argwhere(ends[:, :size] & np.isfinite(totals[:, :size])).tolist()
            for row, rank in ending:
                total, log_prob = float(totals[row, rank]), float(own[row, rank])
                ended[row].append(_End(total, log_prob, row, int(origins[row, rank]), length - 1, True))
            totals[ends] = -np.inf
            # the best that go on, in their order; too few in a tiny vocabulary: dead ones fill the beam
            going = ends.argsort(axis=1, kind="stable")[:, :size] + first * ends.shape[1]
            live, own, tokens, origins = (array.take(going) for array in (totals, own, ids, origins))
            live[[row for row, _ in ending if len(ended[row]) >= size]] = -np.inf
            alive = np.isfinite(live).reshape(batch, -1).any(1)
            if not alive.any():
                break
            decoding.drop(alive)
        else:
            live, own, tokens, origins = totals[:, :size], own[:, :size], ids[:, :size].copy(), origins[:, :size].copy()
        trace.tokens.append(tokens.tolist())
        trace.parents.append(origins.tolist())
        parents = origins + number * width
        if constraints.remembers:
            history = np.concatenate([np.take_along_axis(history, origins[:, :, None], 1), tokens[:, :, None]], 2)
    for row, index in np.argwhere(np.isfinite(live)).tolist():
        if len(ended[row]) < size:
            total, log_prob = float(live[row, index]), float(own[row, index])
            ended[row].append(_End(total, log_prob, row, index, len(trace.tokens), False))
    return [
        _hypotheses(ended[i * searches : (i + 1) * searches], trace, config, len(source), alignments)
        for i, source in enumerate(sources)
    ]


def check(runtime: Runtime, config: SearchConfig) -> None:
    """Refuses what this model cannot serve, before there is a sentence; `search` asks it too.

    Raises:
        UsageError: the graph gives too few candidates for this beam, or no alignments where an option needs them; a
            token to suppress that the vocabulary does not have, or that is the end symbol.
    """
    step = runtime.graphs["step"]
    beam, (candidates, vocabulary) = config.beam, _sizes(step)
    if not config.sample and candidates < beam + 1 and candidates < vocabulary:
        raise UsageError(
            f"a beam of {beam} needs {beam + 1} candidates a step, this bundle gives {candidates}; "
            f"use --beam {candidates - 1} or less, or export again with --candidates {beam + 1}"
        )
    if config.coverage_penalty and not _aligned(step):
        raise UsageError("the coverage penalty needs alignments, and this model has no attention that gives them")
    check_suppressed(config.suppress, vocabulary)


def _aligned(step: GraphSpec) -> bool:
    return any(tensor.name == "alignment" for tensor in step.outputs)


def _sizes(step: GraphSpec) -> tuple[int, int]:
    """Candidates that a step gives, and entries of the vocabulary."""
    sizes = {tensor.name: tensor.shape[-1] for tensor in step.outputs if tensor.shape}
    return int(sizes["candidates"]), int(sizes["log_probs"])


def _best_ids(worth: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` best tokens after each hypothesis, best first: (rows, width, vocab) -> (rows, width, keep)."""
    if keep < worth.shape[2]:
        some = np.argpartition(-worth, keep - 1, axis=2)[:, :, :keep]
        some.sort(axis=2)  # equals in the vocabulary's order, as the graph's candidates
    else:
        some = np.broadcast_to(np.arange(worth.shape[2]), worth.shape)
    order = np.argsort(-np.take_along_axis(worth, some, 2), axis=2, kind="stable")
    return np.take_along_axis(some, order, 2)


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


def forced(
    runtime: Runtime, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> Iterator[tuple[Decoding, dict[str, Value]]]:
    """Teacher-forced along `targets`: the outputs of each step, up to the longest target's end symbol; a beam of one.

    Rows whose target has ended are fed eos; what they say then means nothing.
    """
    decoding = Decoding(runtime, sources)
    parents = np.zeros((len(sources), 1), np.int64)
    for step in range(max(map(len, targets)) + 1):
        last = [BOS if step == 0 else target[step - 1] if step <= len(target) else EOS for target in targets]
        yield decoding, decoding.step(np.array(last, np.int64)[:, None], parents)
