"""Record golden data of encoder-decoder models: run the reference and store its results."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_attn.decoding.batching import BATCH, batches, search_batches
from edge_attn.decoding.decoder import ENCODER, STEP, encode, output_sizes, teacher_force, vocabulary_sizes
from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.decoding.options import SearchConfig
from edge_attn.parity.decoder_probes import IMPOSSIBLE, Probes, plan, probe_level, project_probes
from edge_attn.parity.figures import StepFigures
from edge_attn.parity.golden import PROJECTIONS, SUMMARY, TOP, Golden, ReferenceHypothesis
from edge_attn.parity.metrics import absolute_difference, largest
from edge_attn.parity.results import TensorDifference
from edge_attn.parity.task import References
from edge_attn.parity.text_digests import text_digests
from edge_attn.progress import track
from edge_attn.spec import Runtime
from edge_attn.text.pipeline import Text, encode_truncated
from edge_attn.text.tokenizers import EOS, Tokenizer

SEED = 20150508
NOISE_FACTOR = 4.0
"""Safety factor: the log-probabilities of two tokens can each be off, in the reference and in the candidate."""
FIGURE_FACTOR = 8.0
"""Safety factor of the figures: one rounding error, early in a long sentence, can be several times the reference's."""
MIN_LOG_REST = float(np.log(1e-6))
"""Lower limit of the compared log of the remaining probability mass."""
RECORDED_BEAM = 5
"""Beam size of the recorded search, where the graph returns enough candidates."""


@dataclass(frozen=True)
class StepOutputs:
    """Outputs of a runtime for one sentence along its target tokens."""

    encoder: dict[str, np.ndarray]
    """Outputs of the encoder: (src, ...) for those with one row a source token, else without that axis."""
    log_probs: np.ndarray
    """Log-probabilities (steps, vocab)."""
    alignment: np.ndarray | None
    """Attention weights (steps, src)."""
    states: dict[str, np.ndarray]
    """Projections of each state after each step, (steps, PROJECTIONS)."""


def projection(width: int) -> np.ndarray:
    """Return a seeded matrix (width, PROJECTIONS) with as many 1 as -1, divided by the square root of the width.

    A constant added to a whole row cancels. Independent errors of one size project to about that size, for any width.
    """
    signs = np.resize(np.array([1.0, -1.0]), width) / np.sqrt(width)
    random = np.random.default_rng([SEED, width])
    return np.stack([random.permutation(signs) for _ in range(PROJECTIONS)], 1)


def run_teacher_forced(
    runtime: Runtime, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch: int = BATCH
) -> Iterator[StepOutputs]:
    """Yield the outputs of `runtime` for each sentence along its target, in batches.

    Args:
        runtime: encoder and step graphs.
        sources: token ids of each source, eos included.
        targets: token ids of each target, without bos and eos.
        batch: sentences of one batch.
    """
    axes = {tensor.name: tensor.shape for graph in runtime.graphs.values() for tensor in graph.outputs}
    for rows in track(batches(len(sources), batch, runtime.max_batch), len(sources), len):
        batch_sources = [sources[i] for i in rows]
        batch_targets = [targets[i] for i in rows]
        log_probs: list[np.ndarray] = []  # (batch, vocab) a step
        alignment: list[np.ndarray] = []  # (batch, src) a step
        states: dict[str, list[np.ndarray]] = {}  # (batch, ...) a step
        encoded: dict[str, np.ndarray] = {}
        for decoder, outputs in teacher_force(runtime, batch_sources, batch_targets):
            encoded = encoded or {name: runtime.numpy(value) for name, value in decoder.encoded.items()}
            log_probs.append(runtime.numpy(outputs["log_probs"])[:, 0])
            if decoder.has_alignment:
                alignment.append(decoder.read_alignment(outputs)[:, 0])
            for name, value in outputs.items():
                if name.startswith("next_"):
                    states.setdefault(name, []).append(runtime.numpy(value)[:, 0])
        for i, (source, target) in enumerate(zip(batch_sources, batch_targets, strict=True)):
            steps, length = len(target) + 1, len(source)
            yield StepOutputs(
                {name: _without_padding(value[i], axes[name][1:], length) for name, value in encoded.items()},
                np.stack([step[i] for step in log_probs[:steps]]),
                np.stack([step[i, :length] for step in alignment[:steps]]) if alignment else None,
                {
                    name: _project(np.stack([_without_padding(v[i], axes[name][2:], length) for v in values[:steps]]))
                    for name, values in states.items()
                },
            )


def _without_padding(value: np.ndarray, axes: Sequence[Any], length: int) -> np.ndarray:
    """Return one sentence's `value` with the source axis first and without padding, if it has that axis."""
    return np.moveaxis(value, axes.index("src"), 0)[:length] if "src" in axes else value


def _project(states: np.ndarray) -> np.ndarray:
    """Return the projections (steps, ..., PROJECTIONS) of states (steps, ...)."""
    projected: np.ndarray = states @ projection(states.shape[-1])
    return projected


def summarize(log_probs: np.ndarray, top: np.ndarray) -> dict[str, np.ndarray]:
    """Return log-probabilities (steps, vocab) as golden data contains them. `top` (steps, TOP): ids of the best."""
    rows = log_probs.astype(np.float64)
    remaining = np.exp(rows)  # (steps, vocab)
    np.put_along_axis(remaining, top, 0.0, 1)
    with np.errstate(divide="ignore"):
        rest = np.log(remaining.sum(1))
    finite = np.where(np.isneginf(rows), IMPOSSIBLE, rows)  # inf - inf would hide the row in its projections
    values = (np.take_along_axis(rows, top, 1), np.maximum(rest, MIN_LOG_REST), finite @ projection(rows.shape[1]))
    return dict(zip(SUMMARY, values, strict=True))


def step_arrays(outputs: StepOutputs, top: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs of one sentence's steps as arrays of golden data, by their names without `steps.`."""
    arrays = {**outputs.states, **summarize(outputs.log_probs, top)}
    return arrays if outputs.alignment is None else {**arrays, "alignment": outputs.alignment}


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """Return a digest of the text of every vocabulary entry."""
    return hashlib.sha256("\n".join(tokenizer.decode([i]) for i in range(len(tokenizer))).encode()).hexdigest()


def record_translation(references: References, text: Text, sentences: Sequence[str], max_source: int) -> Golden:
    """Return golden data for `sentences`, with the largest beam up to RECORDED_BEAM that the graphs support.

    The model's own equations compute all of it, except the encoder's outputs: these are compared with the exported
    encoder, so they come from the deployed form.

    Args:
        references: the reference model in its three forms.
        text: tokenizers of both sides.
        sentences: source sentences.
        max_source: maximum source length in tokens.
    """
    candidates, _ = output_sizes(references.reference.graphs)
    beam = max(1, min(RECORDED_BEAM, candidates - 1))
    config = SearchConfig(beam=beam, n_best=beam, max_length=2 * max_source)
    encoders = references.deployed, references.deployed_precise
    return record(references.reference, references.precise, text, sentences, config, max_source, encoders)


def record(
    reference: Runtime,
    precise: Runtime,
    text: Text,
    sentences: Sequence[str],
    config: SearchConfig,
    max_source: int,
    encoders: tuple[Runtime, Runtime] | None = None,
) -> Golden:
    """Return the results of `reference` (fp32), and its noise against `precise` (the same weights in fp64).

    Args:
        reference: the model in fp32.
        precise: the model in fp64.
        text: tokenizers of both sides.
        sentences: source sentences.
        config: beam search to record; greedy search is recorded too.
        max_source: maximum source length in tokens.
        encoders: the model in fp32 and in fp64 whose encoder's outputs are recorded; by default the first two.
    """
    sources = [encode_truncated(text, sentence, max_source)[0] for sentence in sentences]
    greedy = search_batches(reference, sources, dataclasses.replace(config, beam=1, n_best=1), True)
    n_best = search_batches(reference, sources, config, True)
    arrays: dict[str, list[np.ndarray]] = {}

    def append(name: str, rows: np.ndarray) -> None:
        arrays.setdefault(name, []).append(rows if rows.dtype == bool else rows.astype(np.float32))

    targets = [hypotheses[0].tokens for hypotheses in greedy]
    figures = StepFigures()
    runs = (run_teacher_forced(runtime, sources, targets) for runtime in (reference, precise))
    for outputs, exact in zip(*runs, strict=True):
        top = np.argsort(-outputs.log_probs, axis=1, kind="stable")[:, :TOP].astype(np.int64)  # (steps, TOP)
        arrays.setdefault("steps.top_ids", []).append(top.astype(np.int32))
        figures.add_steps(step_arrays(exact, top), step_arrays(outputs, top))
        for name, value in summarize(outputs.log_probs, top).items():
            append(f"steps.{name}", value)
        noise = NOISE_FACTOR * absolute_difference(outputs.log_probs, exact.log_probs).max(1)
        append("steps.noise", np.where(np.isfinite(noise), noise, 0.0))
        for name, value in outputs.states.items():
            append(f"steps.{name}", value)
        if outputs.alignment is not None:
            append("steps.alignment", outputs.alignment.reshape(-1))
    beam_alignment = TensorDifference()
    along_beam = run_teacher_forced(precise, sources, [hypotheses[0].tokens for hypotheses in n_best])
    for source, hypotheses, exact in zip(sources, n_best, along_beam, strict=True):
        weights = hypotheses[0].alignment
        if weights is not None and exact.alignment is not None:
            append("beam.alignment", weights[:, : len(source)].reshape(-1))
            beam_alignment.add("alignment", exact.alignment[: len(weights)], weights[:, : len(source)])
    encoded, exactly = (record_encoder(runtime, sources) for runtime in encoders or (reference, precise))
    rows = [{name.partition(".")[2]: value for name, value in part.items()} for part in (exactly, encoded)]
    figures.add_encoder(rows[0], rows[1])
    vocabularies = vocabulary_sizes(reference.graphs, "the model")
    probes = plan(reference.graphs, sources, targets, vocabularies, (max_source, config.max_length))
    probed, noise = record_probes(probes, (reference, precise), encoders or (reference, precise))
    best = [hypotheses[0] for hypotheses in _with_noise(reference, precise, text, sources, greedy)]
    lists = _with_noise(reference, precise, text, sources, n_best)
    return Golden(
        config,
        tuple(sentences),
        tuple(tuple(source) for source in sources),
        tuple(best),
        tuple(lists),
        vocabulary_digest(text.target),
        {**_noise_of_figures(figures, beam_alignment, [*best, *itertools.chain(*lists)]), **noise},
        {"source": text_digests(text.source), "target": text_digests(text.target)},
        output_sizes(reference.graphs)[0],
        probes.sizes,
        {**encoded, **{name: np.concatenate(rows) for name, rows in arrays.items()}, **probes.arrays(), **probed},
    )


def record_probes(
    probes: Probes, models: tuple[Runtime, Runtime], encoders: tuple[Runtime, Runtime]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the projected outputs of probes as arrays of golden data, and the noise of their figures by key.

    Args:
        probes: token sequences.
        models: the model in fp32 and in fp64, whose steps are recorded.
        encoders: the model in fp32 and in fp64 whose encoder's outputs are recorded.
    """
    arrays: dict[str, np.ndarray] = {}
    noise: dict[str, float] = {}
    for graph, forms, decode in ((ENCODER, encoders, False), (STEP, models, True)):
        recorded, exact = (project_probes(runtime, probes, graph, decode) for runtime in forms)
        for name, rows in recorded.items():
            arrays[f"probes.{graph}.{name}"] = rows.astype(np.float32)
            figure = f"{probe_level(name)}.probe {name}"
            noise[figure] = FIGURE_FACTOR * largest(absolute_difference(rows, exact[name]))
    return arrays, {key: value if np.isfinite(value) else 0.0 for key, value in noise.items()}


def _noise_of_figures(
    figures: StepFigures, beam_alignment: TensorDifference, hypotheses: Sequence[ReferenceHypothesis]
) -> dict[str, float]:
    """Return the noise of each figure of L1, L2 and L3 by its key.

    Args:
        figures: the reference in fp64 against fp32, along its greedy tokens.
        beam_alignment: the same of the alignments along the best translation of beam search.
        hypotheses: recorded hypotheses, with their noise.
    """
    noise = figures.noise(FIGURE_FACTOR)
    noise["L3.log_prob"] = max(hypothesis.noise for hypothesis in hypotheses)
    noise["L3.score"] = max(hypothesis.score_noise for hypothesis in hypotheses)
    if "L1.alignment" in noise:
        along_beam = FIGURE_FACTOR * beam_alignment.max_abs("alignment")
        noise["L3.alignment"] = max(noise["L1.alignment"], along_beam if np.isfinite(along_beam) else 0.0)
    return noise


def record_encoder(runtime: Runtime, sources: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Return the encoder's outputs as arrays of golden data, the sentences' rows one after another."""
    shapes = {tensor.name: tensor.shape for tensor in runtime.graphs[ENCODER].outputs}
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in shapes}
    for rows in track(batches(len(sources), BATCH, runtime.max_batch), len(sources), len):
        batch_sources = [sources[i] for i in rows]
        encoded = encode(runtime, batch_sources)
        for name, shape in shapes.items():
            for value, source in zip(runtime.numpy(encoded[name]), batch_sources, strict=True):
                value = _without_padding(value, shape[1:], len(source))
                arrays[name].append(value if "src" in shape else value[None])
    joined = {f"encoder.{name}": np.concatenate(rows) for name, rows in arrays.items()}
    return {name: rows if rows.dtype == bool else rows.astype(np.float32) for name, rows in joined.items()}


def _with_noise(
    reference: Runtime,
    precise: Runtime,
    text: Text,
    sources: Sequence[Sequence[int]],
    n_best: Sequence[Sequence[Hypothesis]],
) -> list[tuple[ReferenceHypothesis, ...]]:
    """Return the hypotheses with text and noise: NOISE_FACTOR times the summed differences along their tokens."""
    flat = [(source, hypothesis) for source, hyps in zip(sources, n_best, strict=True) for hypothesis in hyps]
    flat_sources, targets = [s for s, _ in flat], [h.tokens for _, h in flat]
    log_probs = [list(_token_log_probs(r, flat_sources, targets)) for r in (reference, precise)]
    noises = iter(NOISE_FACTOR * float(np.abs(a - b).sum()) for a, b in zip(*log_probs, strict=True))
    return [
        tuple(
            ReferenceHypothesis(h.tokens, text.target.decode(h.tokens), h.log_prob, h.score, next(noises), h.finished)
            for h in hyps
        )
        for hyps in n_best
    ]


def _token_log_probs(
    runtime: Runtime, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> Iterator[np.ndarray]:
    """Yield the log-probability of each token of each target, the end symbol's last."""
    for rows in track(batches(len(sources), 2 * BATCH, runtime.max_batch), len(sources), len):
        batch_targets = [targets[i] for i in rows]
        steps = [
            runtime.numpy(outputs["log_probs"])[:, 0]
            for _, outputs in teacher_force(runtime, [sources[i] for i in rows], batch_targets)
        ]
        for i, target in enumerate(batch_targets):
            yield np.array([steps[t][i, token] for t, token in enumerate((*target, EOS))])
