"""Search, written once in numpy: it drives torch (the reference), ONNX Runtime and TensorRT alike.

The model is seen through `Decoding`: the encoder runs once, then each step takes the tokens of the live hypotheses and
their parents, and gives the best candidates after each. States are reordered by the parents inside the graph, and stay
the runtime's values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_attn.config import SearchConfig
from edge_attn.errors import UsageError
from edge_attn.spec import Runtime, Value
from edge_attn.text import BOS, EOS, PAD


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one source."""

    tokens: tuple[int, ...]
    """Without bos and eos."""
    log_prob: float
    """Summed over the tokens and, if finished, the end symbol."""
    score: float
    """log_prob / length ** length_penalty, the end symbol counted in the length."""
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
        self.aligned = any(tensor.name == "alignment" for tensor in step.outputs)
        self.candidates = int(next(tensor for tensor in step.outputs if tensor.name == "candidates").shape[2])

    def step(self, tokens: np.ndarray, parents: np.ndarray) -> dict[str, Value]:
        """tokens and parents (batch, beam) int64 -> the step's outputs; its states are kept for the next step."""
        outputs = self.runtime.run("step", {"tokens": tokens, "parents": parents, **self._memory, **self._state})
        self._state = {name: outputs[f"next_{name}"] for name in self._states}
        return outputs


def search(
    runtime: Runtime, sources: Sequence[Sequence[int]], config: SearchConfig, alignments: bool = False
) -> list[list[Hypothesis]]:
    """The `n_best` hypotheses of each source, best first: beam search, which with a beam of one is greedy search.

    At each step the best 2 * beam continuations of a sentence are looked at. Those among the first `beam` that end it
    are finished; the best `beam` that do not end it live on. A sentence is done when `beam` hypotheses are finished.

    Raises:
        UsageError: the graph gives too few candidates for this beam.
    """
    decoding = Decoding(runtime, sources)
    beam, batch = config.beam, decoding.batch
    if decoding.candidates < beam + 1 and decoding.candidates < _vocabulary(runtime):
        raise UsageError(
            f"a beam of {beam} needs {beam + 1} candidates a step, this bundle gives {decoding.candidates}; "
            f"use --beam {decoding.candidates - 1} or less, or export again with --candidates {beam + 1}"
        )
    trace = _Trace([], [], [] if alignments and decoding.aligned else None)
    live = np.zeros((batch, 1))
    tokens = np.full((batch, 1), BOS, np.int64)
    parents = np.zeros((batch, 1), np.int64)
    finished: list[list[Hypothesis]] = [[] for _ in range(batch)]
    done = np.zeros(batch, bool)
    rows = np.arange(batch)[:, None]
    for length in range(1, config.max_length + 1):
        outputs = decoding.step(tokens, parents)
        keep = min(beam + 1, decoding.candidates)
        best = runtime.numpy(outputs["candidates"])[:, :, :keep]
        ids = runtime.numpy(outputs["candidate_ids"])[:, :, :keep].reshape(batch, -1)
        if trace.alignments is not None:
            trace.alignments.append(runtime.numpy(outputs["alignment"]))
        totals = (live[:, :, None] + best).reshape(batch, -1)
        ranked = np.argsort(-totals, axis=1, kind="stable")[:, : 2 * beam]
        totals, ids, origins = totals[rows, ranked], ids[rows, ranked], ranked // keep
        ends = ids == EOS
        for row, rank in np.argwhere(ends[:, :beam] & ~done[:, None] & np.isfinite(totals[:, :beam])):
            path = trace.follow(int(row), int(origins[row, rank]), length - 1)
            finished[row].append(_hypothesis(path, float(totals[row, rank]), length, True, config))
            done[row] = len(finished[row]) >= beam
        if done.all():
            break
        # the best `beam` that go on, in their order; too few in a tiny vocabulary: dead ones fill the beam
        going = np.argsort(ends, axis=1, kind="stable")[:, :beam]
        live = np.where(ends[rows, going], -np.inf, totals[rows, going])
        tokens = np.where(ends[rows, going], PAD, ids[rows, going])
        parents = origins[rows, going]
        trace.tokens.append(tokens)
        trace.parents.append(parents)
    for row in np.flatnonzero(~done):
        for index in range(min(live.shape[1], beam - len(finished[row]))):
            if np.isfinite(live[row, index]):
                path = trace.follow(int(row), index, len(trace.tokens))
                finished[row].append(_hypothesis(path, float(live[row, index]), len(path[0]), False, config))
        if not finished[row]:  # the model says NaN, or that nothing can follow: an answer that nobody can take for one
            finished[row].append(Hypothesis((), np.nan, np.nan, False))
    return [sorted(hyps, key=lambda h: (not h.finished, -h.score))[: config.n_best] for hyps in finished]


@dataclass
class _Trace:
    """What lived at each step: tokens, parents and alignments, to read a hypothesis back from its end."""

    tokens: list[np.ndarray]
    parents: list[np.ndarray]
    alignments: list[np.ndarray] | None

    def follow(self, row: int, index: int, steps: int) -> tuple[tuple[int, ...], np.ndarray | None]:
        """The tokens of the hypothesis `index` after `steps` steps, and the weights of every step up to the latest."""
        tokens: list[int] = []
        weights: list[np.ndarray] = []
        for step in reversed(range(steps)):
            if self.alignments is not None and len(self.alignments) > step + 1:
                weights.append(self.alignments[step + 1][row, index])
            tokens.append(int(self.tokens[step][row, index]))
            index = int(self.parents[step][row, index])
        if self.alignments is None:
            return tuple(reversed(tokens)), None
        weights.append(self.alignments[0][row, index])
        return tuple(reversed(tokens)), np.stack(weights[::-1])


def _hypothesis(
    path: tuple[tuple[int, ...], np.ndarray | None], log_prob: float, length: int, finished: bool, config: SearchConfig
) -> Hypothesis:
    score = log_prob / max(length, 1) ** config.length_penalty
    return Hypothesis(path[0], log_prob, score, finished, path[1])


def _vocabulary(runtime: Runtime) -> int:
    return int(next(tensor for tensor in runtime.graphs["step"].outputs if tensor.name == "log_probs").shape[2])


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
