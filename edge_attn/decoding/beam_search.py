"""Search, written once in numpy: it drives torch (the reference), ONNX Runtime and TensorRT alike.

The model is seen through `StepDecoder`: the encoder runs once, then each step takes the tokens of the live hypotheses
and their parents, and returns the best candidates after each. The graph reorders its states by the parents, and they
stay the runtime's values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_attn.decoding.decoder import StepDecoder, _aligned, _sizes
from edge_attn.decoding.hypothesis import Hypothesis, _End, _hypotheses, _Trace
from edge_attn.decoding.logits_processors import LogitsProcessors, check_suppressed
from edge_attn.decoding.options import SearchConfig
from edge_attn.decoding.sampling import Sampler
from edge_attn.decoding.scores import diverse_order
from edge_attn.errors import UsageError
from edge_attn.spec import Runtime
from edge_attn.text.tokenizers import BOS, EOS


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
        raise UsageError(f"each of the {len(sources)} sentences needs a prefix, got {len(prefixes)} prefixes")
    decoding = StepDecoder(runtime, sources)
    batch, searches, size = decoding.batch, config.searches, config.beam // config.groups
    rows, keep = batch * searches, min(config.beam + 1, decoding.candidates)
    constraints = LogitsProcessors(config, prefixes or [()] * batch, decoding.vocabulary)
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


def _best_ids(worth: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` best tokens after each hypothesis, best first: (rows, width, vocab) -> (rows, width, keep)."""
    if keep < worth.shape[2]:
        some = np.argpartition(-worth, keep - 1, axis=2)[:, :, :keep]
        some.sort(axis=2)  # equals in the vocabulary's order, as the graph's candidates
    else:
        some = np.broadcast_to(np.arange(worth.shape[2]), worth.shape)
    order = np.argsort(-np.take_along_axis(worth, some, 2), axis=2, kind="stable")
    return np.take_along_axis(some, order, 2)
