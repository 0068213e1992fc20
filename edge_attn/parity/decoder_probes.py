"""Probes of encoder-decoder models: each source entry, each target entry, each length, batch size and beam.

- Each source entry is a source of its own, with eos behind it: a fault is in the row of that entry.
- A source of each length, and short ones, consist of tokens of the golden sentences. Each has hypotheses of two tokens,
  and each target entry is fed to a step as one of these. They run as beams of every width, and the second step
  continues them in another order.
- One long walk feeds as many tokens as a translation may have.

What a probe yields does not depend on its batch and beam, so that a runtime may arrange them as its engines need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_attn.decoding.decoder import ENCODER, STEP, StepDecoder, output_sizes
from edge_attn.parity.metrics import absolute_difference
from edge_attn.parity.probes import (
    PROJECTIONS,
    batch_sizes,
    entry_batches,
    probed_lengths,
    project,
    project_positions,
    shuffled,
)
from edge_attn.spec import GraphSpec, Runtime, Value
from edge_attn.text.tokenizers import EOS

STEPS = 2
"""Tokens of a hypothesis: the second one is fed after the beam was reordered."""
MAX_WIDTH = 8
"""Largest beam that is probed."""
MAX_SLOTS = 96
"""Largest number of hypotheses in one step: wide beams run in small batches."""
SHORT = 6
"""Largest length of the short sources."""
MIN_SHORT = 16
"""Least number of short sources."""


IMPOSSIBLE = -1e3
"""Log-probability that stands for -inf in the projections."""
PROBE_SIZES = dict.fromkeys(("sources", "tokens", "hypotheses", "walk")).keys()
"""Sizes that golden data records of its probes."""


@dataclass(frozen=True)
class Probes:
    """The token sequences of all probes."""

    entries: np.ndarray
    """Source entries that are a source of their own, (entries) int32."""
    sources: tuple[tuple[int, ...], ...]
    """Sources whose hypotheses are decoded; after one of each length come the short ones."""
    owners: np.ndarray
    """Index of each hypothesis's source, in increasing order, (hypotheses) int32."""
    paths: np.ndarray
    """Tokens that are fed for each hypothesis, (hypotheses, STEPS) int32."""
    walk: np.ndarray
    """Tokens that are fed one after another for the longest source, (walk) int32."""

    @property
    def encoder_rows(self) -> int:
        """Number of recorded encodings: of the entries, then of the sources."""
        return len(self.entries) + len(self.sources)

    @property
    def step_rows(self) -> int:
        """Number of recorded steps: STEPS of each hypothesis, then the walk."""
        return self.paths.size + len(self.walk)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of sources, of their tokens, of hypotheses and of the tokens of the walk."""
        sizes = len(self.sources), sum(map(len, self.sources)), len(self.paths), len(self.walk)
        return dict(zip(PROBE_SIZES, sizes, strict=True))

    def fed(self) -> np.ndarray:
        """Return the token that each recorded step was fed, (step_rows)."""
        return np.concatenate([self.paths.reshape(-1), self.walk])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the sequences as arrays of golden data."""
        return {
            "probes.entries": self.entries,
            "probes.sources": np.concatenate([np.array(source, np.int32) for source in self.sources]),
            "probes.source_lengths": np.array([len(source) for source in self.sources], np.int32),
            "probes.owners": self.owners,
            "probes.paths": self.paths,
            "probes.walk": self.walk,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Probes:
        """Return the probes whose sequences are in arrays of golden data."""
        ends = np.cumsum(arrays["probes.source_lengths"])
        sources = np.split(arrays["probes.sources"], ends[:-1])
        others = (arrays[f"probes.{name}"] for name in ("owners", "paths", "walk"))
        return cls(arrays["probes.entries"], tuple(tuple(source.tolist()) for source in sources), *others)


@dataclass(frozen=True)
class ProbeOutputs:
    """Projected outputs of one run of a graph."""

    graph: str
    rows: np.ndarray
    """Recorded row of each probe of the run, (probes)."""
    values: dict[str, np.ndarray]
    """Projections of each output by name, (probes, PROJECTIONS)."""
    place: str
    """Batch, beam and source length of the run."""
    candidates: float = 0.0
    """Largest difference between the candidates of a step and its log-probabilities, infinite for wrong ones."""


def plan(
    graphs: Mapping[str, GraphSpec],
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    sizes: tuple[int, int],
    limits: tuple[int, int],
) -> Probes:
    """Return probes that look up every entry.

    Args:
        graphs: the graphs of the model.
        sources: token ids of golden sentences, eos included; the tokens of the longer probes.
        targets: token ids of their translations; the tokens of the walk.
        sizes: number of source entries and of target entries.
        limits: maximum source length in tokens, and maximum number of target tokens.
    """
    natural = [token for source in sources for token in source[:-1]] or [EOS]
    fed = [token for target in targets for token in (*target, EOS)]
    candidates, vocabulary = output_sizes(graphs)
    width = MAX_WIDTH if candidates >= vocabulary else max(1, min(MAX_WIDTH, candidates - 1))
    lengths = probed_lengths(limits[0])
    widths = [1 + i % width for i in range(len(lengths))]
    missing = max(sizes[1] - STEPS * sum(widths), 0)
    short = max(MIN_SHORT, math.ceil(missing / (STEPS * width)))
    lengths += [1 + i % min(SHORT, limits[0]) for i in range(short)]
    widths += [width] * short
    chosen, start = [], 0
    for length in lengths:
        chosen.append((*(natural[(start + i) % len(natural)] for i in range(length - 1)), EOS))
        start += length
    hypotheses = sum(widths)
    tokens = np.resize(shuffled(sizes[1], 1), (hypotheses, STEPS))
    return Probes(
        np.arange(sizes[0], dtype=np.int32),
        tuple(chosen),
        np.repeat(np.arange(len(chosen)), widths).astype(np.int32),
        tokens.astype(np.int32),
        np.resize(np.array(fed), limits[1]).astype(np.int32),
    )


def probed_outputs(graph: GraphSpec) -> list[str]:
    """Return the names of the outputs that are projected: all but the candidates, which the log-probabilities judge."""
    return [tensor.name for tensor in graph.outputs if tensor.name not in ("candidates", "candidate_ids")]


def run_probes(
    runtime: Runtime, probes: Probes, decode: bool = True, every_size: bool = True
) -> Iterator[ProbeOutputs]:
    """Yield the projected outputs of all probes.

    Args:
        runtime: encoder and step graphs.
        probes: token sequences.
        decode: False to run the encoder alone.
        every_size: True for batches and beams of every size that the runtime takes, False for few large ones.
    """
    sizes = batch_sizes(runtime.max_batch)
    for index in entry_batches(len(probes.entries), sizes if every_size else sizes[-1:]):
        decoder = StepDecoder(runtime, [(int(probes.entries[i]), EOS) for i in index])
        yield _encoded(decoder, index, np.full(len(index), 2))
    for number, (index, beams) in enumerate(_schedule(probes, runtime, every_size)):
        sources = [probes.sources[i] for i in index]
        lengths = np.array([len(source) for source in sources])
        decoder = StepDecoder(runtime, sources)
        yield _encoded(decoder, len(probes.entries) + index, lengths)
        if not decode:
            continue
        width = beams.shape[1]
        order = np.roll(np.arange(width)[::-1], number)
        outputs = decoder.step(probes.paths[beams, 0].astype(np.int64), np.zeros(beams.shape, np.int64))
        yield _stepped(decoder, outputs, STEPS * beams, lengths)
        beams = beams[:, order]
        outputs = decoder.step(probes.paths[beams, 1].astype(np.int64), np.tile(order, (len(index), 1)))
        yield _stepped(decoder, outputs, STEPS * beams + 1, lengths)
    if decode:
        longest = max(probes.sources, key=len)
        decoder = StepDecoder(runtime, [longest])
        for position, token in enumerate(probes.walk):
            outputs = decoder.step(np.array([[token]], np.int64), np.zeros((1, 1), np.int64))
            yield _stepped(decoder, outputs, np.array([[probes.paths.size + position]]), np.array([len(longest)]))


def project_probes(runtime: Runtime, probes: Probes, graph: str, decode: bool) -> dict[str, np.ndarray]:
    """Return the projections (rows, PROJECTIONS) of each output of a graph, by name.

    Args:
        runtime: encoder and step graphs.
        probes: token sequences.
        graph: name of the graph.
        decode: False to run the encoder alone.
    """
    count = probes.encoder_rows if graph == ENCODER else probes.step_rows
    names = probed_outputs(runtime.graphs[graph])
    projections = {name: np.full((count, PROJECTIONS), np.nan) for name in names}
    for outputs in run_probes(runtime, probes, decode, every_size=False):
        if outputs.graph == graph:
            for name, values in outputs.values.items():
                projections[name][outputs.rows] = values
    return projections


def probe_level(output: str) -> str:
    """Return the level that compares an output: L2 for log-probabilities, L1 for all others."""
    return "L2" if output == "log_probs" else "L1"


def _schedule(probes: Probes, runtime: Runtime, every_size: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield sources (batch) and their hypotheses (batch, beam): each length, each batch size, then what is left."""
    sizes = batch_sizes(runtime.max_batch)
    first, counts = np.unique(probes.owners, return_index=True, return_counts=True)[1:]
    width = min(int(counts.max()), runtime.max_beam or MAX_WIDTH)
    lengths = np.array([len(source) for source in probes.sources])
    short = np.flatnonzero((counts == counts.max()) & (lengths <= SHORT))
    next_hypothesis = np.zeros(len(counts), np.int64)
    was_run = np.zeros(len(probes.owners), bool)

    def beams(index: np.ndarray, width: int) -> np.ndarray:
        """Return the next `width` hypotheses of each source, (batch, width)."""
        taken = first[index, None] + (next_hypothesis[index, None] + np.arange(width)) % counts[index, None]
        next_hypothesis[index] += width
        was_run[taken] = True
        return taken

    for i in np.unique(lengths, return_index=True)[1] if every_size else ():
        companions = short[[i % len(short)]] if len(sizes) > 1 else short[:0]
        index = np.array([i, *companions])
        while not was_run[first[i] : first[i] + counts[i]].all():
            yield index, beams(index, min(width, int(counts[i])))
    start = 0
    for number, size in enumerate(sizes if every_size else ()):
        index = short[(start + np.arange(size)) % len(short)]
        start += size
        yield index, beams(index, max(1, min(width - number % width, MAX_SLOTS // size)))
    while not was_run.all():
        index = np.unique(probes.owners[~was_run])[: max(1, min(sizes[-1], MAX_SLOTS // width))]
        yield index, beams(index, width)


def _encoded(decoder: StepDecoder, rows: np.ndarray, lengths: np.ndarray) -> ProbeOutputs:
    """Return the projected outputs of the encoder; `lengths` (batch) is the number of source tokens."""
    runtime = decoder.runtime
    axes = {tensor.name: tensor.shape for tensor in runtime.graphs[ENCODER].outputs}
    values = {
        name: _projected(runtime.numpy(value), axes[name][1:], lengths) for name, value in decoder.encoded.items()
    }
    return ProbeOutputs(ENCODER, rows, values, f"batch {len(lengths)}, source length {lengths.max()}")


def _stepped(decoder: StepDecoder, outputs: Mapping[str, Value], rows: np.ndarray, lengths: np.ndarray) -> ProbeOutputs:
    """Return the projected outputs of a step.

    Args:
        decoder: the decoder that ran the step.
        outputs: outputs of the step by name.
        rows: recorded row of each hypothesis, (batch, beam).
        lengths: number of source tokens, (batch).
    """
    runtime, (batch, width) = decoder.runtime, rows.shape
    axes = {tensor.name: tensor.shape for tensor in runtime.graphs[STEP].outputs}
    log_probs, candidates, ids = (runtime.numpy(outputs[n]) for n in ("log_probs", "candidates", "candidate_ids"))
    values = {}
    for name in probed_outputs(runtime.graphs[STEP]):
        value = runtime.numpy(outputs[name])
        if name == "log_probs":  # inf - inf would hide the row
            value = np.maximum(value, IMPOSSIBLE)
        value = value.reshape(batch * width, *value.shape[2:])
        values[name] = _projected(value, axes[name][2:], np.repeat(lengths, width))
    place = f"batch {batch}, beam {width}, source length {lengths.max()}"
    return ProbeOutputs(STEP, rows.reshape(-1), values, place, candidate_difference(log_probs, candidates, ids))


def _projected(value: np.ndarray, axes: Sequence[object], lengths: np.ndarray) -> np.ndarray:
    """Return the projections (rows, PROJECTIONS) of an output (rows, *axes), which may have source positions."""
    if "src" not in axes:
        return project(value)
    return project_positions(np.moveaxis(value, 1 + list(axes).index("src"), 1), lengths)


def candidate_difference(log_probs: np.ndarray, candidates: np.ndarray, ids: np.ndarray) -> float:
    """Return the largest difference between candidates and the best log-probabilities, infinite for wrong ids.

    Log-probabilities whose probabilities do not sum to one differ too: by the logarithm of the sum.

    Args:
        log_probs: log-probabilities, (batch, beam, vocab).
        candidates: the best of them in decreasing order, (batch, beam, candidates).
        ids: their token ids, (batch, beam, candidates).
    """
    vocabulary, count = log_probs.shape[-1], ids.shape[-1]
    if not ((ids >= 0) & (ids < vocabulary)).all() or (np.diff(np.sort(ids, -1), axis=-1) == 0).any():
        return math.inf
    rows = log_probs.reshape(-1, vocabulary)
    best = np.sort(np.partition(rows, vocabulary - count, 1)[:, vocabulary - count :], 1)[:, ::-1]
    best = best.reshape(candidates.shape)
    gathered = np.take_along_axis(log_probs, ids, -1)
    apart = (absolute_difference(values, candidates).max() for values in (gathered, best))
    total = np.log(np.exp(rows, dtype=np.float64).sum(1))  # (batch * beam)
    return float(np.max([*apart, np.abs(total).max()]))
