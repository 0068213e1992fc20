"""Record golden data: run the reference and keep what it computed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_attn.decoding.batching import BATCH, batches, search_batches
from edge_attn.decoding.decoder import pad_sources, teacher_force
from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.decoding.options import SearchConfig
from edge_attn.parity.golden import PROJECTIONS, SUMMARY, TOP, Golden, ReferenceHypothesis
from edge_attn.spec import Runtime
from edge_attn.text.pipeline import Text, encode_truncated
from edge_attn.text.tokenizers import EOS, Tokenizer

SEED = 20150508
NOISE_FACTOR = 4.0
"""Two tokens' log-probabilities can each be off, on the reference's side and on the candidate's."""
LEAST_REST = float(np.log(1e-6))
"""The log of the remaining mass is compared down to this."""


@dataclass(frozen=True)
class StepOutputs:
    """What a runtime says about one sentence along given tokens."""

    encoder: dict[str, np.ndarray]
    """Each output of the encoder: (src, ...) for what has one row a source token, else without any axis for it."""
    log_probs: np.ndarray
    """(steps, vocab)."""
    alignment: np.ndarray | None
    """(steps, src)."""
    states: dict[str, np.ndarray]
    """Projections of each state after each step, (steps, PROJECTIONS)."""


def projection(width: int) -> np.ndarray:
    """(width, PROJECTIONS) of as many 1 as -1, over the root of the width, the same everywhere.

    A shift of the whole row cancels; independent errors of one size project to about that size, for any width.
    """
    signs = np.resize(np.array([1.0, -1.0]), width) / np.sqrt(width)
    random = np.random.default_rng([SEED, width])
    return np.stack([random.permutation(signs) for _ in range(PROJECTIONS)], 1)


def run_teacher_forced(
    runtime: Runtime, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch: int = BATCH
) -> Iterator[StepOutputs]:
    """What `runtime` says about each sentence along its target, in batches."""
    for rows in batches(len(sources), batch, runtime.max_batch):
        some = [sources[i] for i in rows]
        along = [targets[i] for i in rows]
        log_probs: list[np.ndarray] = []
        alignment: list[np.ndarray] = []
        states: dict[str, list[np.ndarray]] = {}
        encoded: dict[str, np.ndarray] = {}
        for decoding, outputs in teacher_force(runtime, some, along):
            encoded = encoded or {name: runtime.numpy(value) for name, value in decoding.encoded.items()}
            log_probs.append(runtime.numpy(outputs["log_probs"])[:, 0])
            if decoding.aligned:
                alignment.append(runtime.numpy(outputs["alignment"])[:, 0])
            for name, value in outputs.items():
                if name.startswith("next_"):
                    states.setdefault(name, []).append(runtime.numpy(value)[:, 0])
        specs = {tensor.name: tensor.shape for graph in runtime.graphs.values() for tensor in graph.outputs}
        for i, (source, target) in enumerate(zip(some, along, strict=True)):
            steps = len(target) + 1
            yield StepOutputs(
                {name: _own(value[i], specs[name][1:], len(source)) for name, value in encoded.items()},
                np.stack([step[i] for step in log_probs[:steps]]),
                np.stack([step[i, : len(source)] for step in alignment[:steps]]) if alignment else None,
                {
                    name: _projected(np.stack([_own(v[i], specs[name][2:], len(source)) for v in values[:steps]]))
                    for name, values in states.items()
                },
            )


def _own(value: np.ndarray, axes: Sequence[Any], length: int) -> np.ndarray:
    """One sentence's part of its row `value` with these axes: that of the source, without padding, comes first."""
    return np.moveaxis(value, axes.index("src"), 0)[:length] if "src" in axes else value


def _projected(states: np.ndarray) -> np.ndarray:
    """(steps, ...) -> (steps, ..., PROJECTIONS)."""
    projected: np.ndarray = states @ projection(states.shape[-1])
    return projected


def summarize(log_probs: np.ndarray, top: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of log-probabilities (steps, vocab) as golden data keeps them; `top` (steps, TOP): the reference's best."""
    rows = log_probs.astype(np.float64)
    left = np.exp(rows)
    np.put_along_axis(left, top, 0.0, 1)
    with np.errstate(divide="ignore"):
        rest = np.log(left.sum(1))
    kept = (np.take_along_axis(rows, top, 1), np.maximum(rest, LEAST_REST), rows @ projection(rows.shape[1]))
    return dict(zip(SUMMARY, kept, strict=True))


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """A digest of decoding every entry alone."""
    return hashlib.sha256("\n".join(tokenizer.decode([i]) for i in range(len(tokenizer))).encode()).hexdigest()


def record(
    reference: Runtime, precise: Runtime, text: Text, sentences: Sequence[str], config: SearchConfig, max_source: int
) -> Golden:
    """What `reference` (fp32) says about `sentences`, and its noise against `precise` (the same weights in fp64)."""
    sources = [encode_truncated(text, sentence, max_source)[0] for sentence in sentences]
    greedy = search_batches(reference, sources, dataclasses.replace(config, beam=1, n_best=1), True)
    n_best = search_batches(reference, sources, config, True)
    arrays: dict[str, list[np.ndarray]] = {}

    def keep(name: str, rows: np.ndarray) -> None:
        arrays.setdefault(name, []).append(rows if rows.dtype == bool else rows.astype(np.float32))

    targets = [hypotheses[0].tokens for hypotheses in greedy]
    pairs = zip(
        run_teacher_forced(reference, sources, targets), run_teacher_forced(precise, sources, targets), strict=True
    )
    for said, exact in pairs:
        top = np.argsort(-said.log_probs, axis=1, kind="stable")[:, :TOP].astype(np.int64)
        arrays.setdefault("steps.top_ids", []).append(top.astype(np.int32))
        for name, value in summarize(said.log_probs, top).items():
            keep(f"steps.{name}", value)
        keep("steps.noise", NOISE_FACTOR * np.abs(said.log_probs - exact.log_probs).max(1))
        for name, value in said.states.items():
            keep(f"steps.{name}", value)
        if said.alignment is not None:
            keep("steps.alignment", said.alignment.reshape(-1))
    for source, hypotheses in zip(sources, n_best, strict=True):
        weights = hypotheses[0].alignment
        if weights is not None:
            keep("beam.alignment", weights[:, : len(source)].reshape(-1))
    return Golden(
        config,
        tuple(sentences),
        tuple(tuple(source) for source in sources),
        tuple(said[0] for said in _said(reference, precise, text, sources, greedy)),
        tuple(_said(reference, precise, text, sources, n_best)),
        vocabulary_digest(text.target),
        {**record_encoder(reference, sources), **{name: np.concatenate(rows) for name, rows in arrays.items()}},
    )


def record_encoder(runtime: Runtime, sources: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """The encoder's outputs as golden data keeps them, by array, the sentences' rows one after another."""
    shapes = {tensor.name: tensor.shape for tensor in runtime.graphs["encoder"].outputs}
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in shapes}
    for rows in batches(len(sources), BATCH, runtime.max_batch):
        source, lengths = pad_sources([sources[i] for i in rows])
        encoded = runtime.run("encoder", {"source": source, "source_length": lengths})
        for name, shape in shapes.items():
            for value, length in zip(runtime.numpy(encoded[name]), lengths, strict=True):
                own = _own(value, shape[1:], length)
                arrays[name].append(own if "src" in shape else own[None])
    joined = {f"encoder.{name}": np.concatenate(rows) for name, rows in arrays.items()}
    return {name: rows if rows.dtype == bool else rows.astype(np.float32) for name, rows in joined.items()}


def _said(
    reference: Runtime,
    precise: Runtime,
    text: Text,
    sources: Sequence[Sequence[int]],
    found: Sequence[Sequence[Hypothesis]],
) -> list[tuple[ReferenceHypothesis, ...]]:
    """Hypotheses with their texts and noise: NOISE_FACTOR times the summed differences along their own tokens."""
    flat = [(source, hypothesis) for source, hyps in zip(sources, found, strict=True) for hypothesis in hyps]
    flat_sources, targets = [s for s, _ in flat], [h.tokens for _, h in flat]
    observed = [list(_along(r, flat_sources, targets)) for r in (reference, precise)]
    noises = iter(NOISE_FACTOR * float(np.abs(a - b).sum()) for a, b in zip(*observed, strict=True))
    return [
        tuple(
            ReferenceHypothesis(h.tokens, text.target.decode(h.tokens), h.log_prob, h.score, next(noises), h.finished)
            for h in hyps
        )
        for hyps in found
    ]


def _along(
    runtime: Runtime, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> Iterator[np.ndarray]:
    """The log-probability of each token of each target, the end symbol's last."""
    for rows in batches(len(sources), 2 * BATCH, runtime.max_batch):
        along = [targets[i] for i in rows]
        steps = [
            runtime.numpy(outputs["log_probs"])[:, 0]
            for _, outputs in teacher_force(runtime, [sources[i] for i in rows], along)
        ]
        for i, target in enumerate(along):
            yield np.array([steps[t][i, token] for t, token in enumerate((*target, EOS))])
