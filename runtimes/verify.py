"""`edge-attn verify`: does the deployed model say what the reference said?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edge_attn import golden
from edge_attn.bundle import Bundle
from edge_attn.config import SearchConfig
from edge_attn.errors import InputError, UsageError
from edge_attn.golden import Golden, Said
from edge_attn.parity import (
    LEVELS,
    RUN_BY_VERIFY,
    Distance,
    Finding,
    Flip,
    Level,
    bounds,
    first_difference,
    largest,
)
from edge_attn.registry import SERVICES, resolve
from edge_attn.search import Hypothesis
from edge_attn.spec import Runtime
from edge_attn.text import EOS, Text
from runtimes.base import open_runtime
from runtimes.report import Report


def verify(
    bundle: Path,
    runtime: str = "ort-cpu",
    levels: Sequence[str] = (),
    overrides: Mapping[str, float] | None = None,
    reference: Path | None = None,
    sentences: Path | None = None,
    threads: int | None = None,
) -> Report:
    """Holds `bundle` on `runtime` to its golden data, or to the live torch model of the checkpoint `reference`.

    Raises:
        BundleError, UsageError, NotTestedError: nothing could be compared.
    """
    opened = Bundle.open(bundle)
    running = open_runtime(opened, runtime, threads)
    if reference is None:
        if sentences is not None:
            raise UsageError("--input needs --reference: golden data exists for the bundle's own sentences only")
        said = golden.load(opened.read)
    else:
        lines = _read_sentences(sentences) if sentences is not None else golden.load(opened.read).sentences
        said = resolve("service", SERVICES, "record reference")(reference, lines, opened.manifest.max_source)
    return check(opened, running, said, levels, overrides or {}, str(reference) if reference else "golden data")


def check_on(bundle: Bundle, runtime: str, said: Golden) -> Report:
    """`check` of a bundle that may not be written yet."""
    return check(bundle, open_runtime(bundle, runtime), said)


def check(
    bundle: Bundle,
    runtime: Runtime,
    said: Golden,
    levels: Sequence[str] = (),
    overrides: Mapping[str, float] | None = None,
    against: str = "golden data",
) -> Report:
    """The levels asked for (by default L1, L2, L3 and L5) of `runtime` against `said`."""
    for name in levels:
        if name not in LEVELS:
            raise UsageError(f"unknown level {name!r}; known: {', '.join(LEVELS)}")
    manifest = bundle.manifest
    limits = bounds(manifest.precision, manifest.tolerances, overrides or {})
    asked = tuple(levels) or RUN_BY_VERIFY
    made = {name: Level(name) for name in LEVELS}
    for name in asked:
        if name not in RUN_BY_VERIFY:
            made[name] = Level(name, "not tested", f"verify runs {', '.join(RUN_BY_VERIFY)}")
    text = bundle.text()
    if "L1" in asked or "L2" in asked:
        for level in _forced(runtime, said, limits):
            if level.name in asked:
                made[level.name] = level
    if "L3" in asked or "L5" in asked:
        ladder: dict[str, Callable[[], Level]] = {
            "L3": lambda: _sentences(runtime, said, text, limits),
            "L5": lambda: _device(runtime, said, limits),
        }
        for name, run in ladder.items():
            if name in asked:
                made[name] = run()
    return Report(
        bundle=str(bundle.path),
        runtime=runtime.name,
        provider=runtime.provider,
        precision=manifest.precision,
        against=against,
        sentences=len(said.sentences),
        overrides=dict(overrides or {}),
        levels=[made[name] for name in LEVELS],
    )


def _read_sentences(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}") from error
    sentences = tuple(line.strip() for line in lines if line.strip())
    if not sentences:
        raise InputError(f"{path} holds no sentence")
    return sentences


def _forced(runtime: Runtime, said: Golden, limits: Mapping[str, float]) -> Iterable[Level]:
    """L1 and L2: encoder outputs alone and in padded batches, and every step along the reference's greedy tokens."""
    arrays, positions, steps = said.arrays, said.positions(), said.steps()
    targets = [hypothesis.tokens for hypothesis in said.greedy]
    alignments = said.alignments("steps.alignment")
    near, drift, aligned = Distance(), Distance(), Distance()
    spread = Distance()
    kl, misses = [], 0
    for batch in (1, golden.BATCH):
        observed = golden.observe(runtime, said.sources, targets, batch)
        for i, seen in enumerate(observed):
            for name, value in seen.encoder.items():
                expected = arrays[f"encoder.{name}"]
                near.add(name, value, expected[positions[i]] if _by_position(runtime, name) else expected[i])
            for name, value in seen.states.items():
                drift.add(name, value, arrays[f"steps.{name}"][steps[i]])
            if alignments:
                found = seen.alignment if seen.alignment is not None else np.array(np.nan)
                aligned.add("alignment", found, alignments[i])
            top = arrays["steps.top_ids"][steps[i]].astype(np.int64)
            expected_top = arrays["steps.top_log_probs"][steps[i]]
            now = golden.summarize(seen.log_probs, top)
            spread.add("log_prob", now["top_log_probs"], expected_top)
            spread.add("rest", now["rest"], arrays["steps.rest"][steps[i]])
            spread.add("projection", now["projections"], arrays["steps.projections"][steps[i]])
            kl.append(_divergence(expected_top, arrays["steps.rest"][steps[i]], now))
            misses += _top1_misses(seen.log_probs, top, expected_top, arrays["steps.noise"][steps[i]])
    graph = Level("L1")
    for name in near.names():
        for measure in ("max_abs", "p99", "relative", "cosine"):
            value = getattr(near, measure)(name)
            graph.findings.append(Finding("L1", f"{measure} {name}", value, limits[f"L1.{measure}"]))
    graph.findings += [
        Finding("L1", f"state {name}", drift.max_abs(name), limits["L1.state"]) for name in drift.names()
    ]
    graph.findings += [Finding("L1", name, aligned.max_abs(name), limits["L1.alignment"]) for name in aligned.names()]
    step = Level("L2")
    step.findings += [Finding("L2", name, spread.max_abs(name), limits[f"L2.{name}"]) for name in spread.names()]
    step.findings.append(Finding("L2", "kl", largest(np.concatenate(kl)), limits["L2.kl"]))
    step.findings.append(Finding("L2", "top1", misses / (2 * steps[-1].stop), limits["L2.top1"]))
    return graph.close(), step.close()


def _by_position(runtime: Runtime, name: str) -> bool:
    return any(tensor.name == name and "src" in tensor.shape for tensor in runtime.graphs["encoder"].outputs)


def _divergence(expected: np.ndarray, rest: np.ndarray, now: Mapping[str, np.ndarray]) -> np.ndarray:
    """KL of the reference from the candidate over the best entries and the rest, a step each."""
    p = np.concatenate([expected, rest[:, None]], 1).astype(np.float64)
    q = np.concatenate([now["top_log_probs"], now["rest"][:, None]], 1)
    divergence: np.ndarray = np.abs((np.exp(p) * (p - q)).sum(1))
    return divergence


def _top1_misses(log_probs: np.ndarray, top: np.ndarray, expected: np.ndarray, noise: np.ndarray) -> int:
    """Steps whose best token is another one, where the reference's own margin is not below its noise."""
    chosen = log_probs.argmax(1)
    margin = np.where(
        (chosen[:, None] == top).any(1),
        expected[:, 0] - np.where(chosen[:, None] == top, expected, -np.inf).max(1),
        np.inf,
    )
    return int(((chosen != top[:, 0]) & ~(margin <= noise)).sum() + (~np.isfinite(log_probs).all(1)).sum())


def _sentences(runtime: Runtime, said: Golden, text: Text, limits: Mapping[str, float]) -> Level:
    """L3: what greedy and beam search give, running free."""
    level = Level("L3")
    count = len(said.sentences)
    greedy = golden.decode(runtime, said.sources, _greedy(said.search), True)
    beam = golden.decode(runtime, said.sources, said.search, True)
    for i, hypotheses in enumerate(greedy):
        if hypotheses[0].tokens != said.greedy[i].tokens:
            level.flips.append(_greedy_flip(said, i, hypotheses[0], "greedy"))
    for i, hypotheses in enumerate(beam):
        flip = _beam_flip(said.n_best[i], hypotheses, i)
        if flip is not None:
            level.flips.append(flip)
    for where in ("greedy", "beam"):
        flips = [flip for flip in level.flips if flip.where == where]
        wrong = sum(not flip.excused for flip in flips)
        level.findings.append(Finding("L3", f"tokens {where}", wrong / count, limits["L3.tokens"]))
        excused = (len(flips) - wrong) / said.steps()[-1].stop
        level.findings.append(Finding("L3", f"excused {where}", excused, limits["L3.excused"]))
    away = Distance()
    pairs = [
        (h, s) for hyps, all_said in zip(beam, said.n_best, strict=True) for h, s in zip(hyps, all_said, strict=False)
    ]
    pairs += [(hyps[0], s) for hyps, s in zip(greedy, said.greedy, strict=True)]
    same = [(h, s) for h, s in pairs if h.tokens == s.tokens]
    away.add("log_prob", np.array([h.log_prob for h, _ in same]), np.array([s.log_prob for _, s in same]))
    away.add("score", np.array([h.score for h, _ in same]), np.array([s.score for _, s in same]))
    for found, expected, recorded in (
        (greedy, said.alignments("steps.alignment"), said.greedy),
        (beam, said.alignments("beam.alignment"), [hypotheses[0] for hypotheses in said.n_best]),
    ):
        for i, weights in enumerate(expected):
            shown = found[i][0].alignment
            if found[i][0].tokens == recorded[i].tokens:
                seen = np.array(np.nan) if shown is None else shown[:, : weights.shape[1]]
                away.add(
                    "alignment",
                    seen[: len(weights)] if seen.ndim else seen,
                    weights[: len(seen)] if seen.ndim else weights,
                )
    level.findings += [Finding("L3", name, away.max_abs(name), limits[f"L3.{name}"]) for name in away.names()]
    wrong_texts = sum(text.target.decode(h.tokens) != s.text for h, s in same)
    wrong_texts += golden.vocabulary_digest(text.target) != said.vocabulary
    level.findings.append(Finding("L3", "text", wrong_texts / max(len(same), 1), limits["L3.text"]))
    return level.close()


def _greedy(config: SearchConfig) -> SearchConfig:
    return dataclasses.replace(config, beam=1, n_best=1)


def _greedy_flip(said: Golden, i: int, found: Hypothesis, where: str) -> Flip:
    """Where greedy search left the reference's tokens, and the reference's margin there."""
    recorded = said.greedy[i]
    step = first_difference(recorded.tokens, found.tokens)
    tokens = (*recorded.tokens, EOS), (*found.tokens, EOS)
    ours, theirs = (row[step] if step < len(row) else -1 for row in tokens)
    row = said.steps()[i].start + step
    top = said.arrays["steps.top_ids"][row].tolist()
    scores = said.arrays["steps.top_log_probs"][row]
    margin = float(scores[top.index(ours)] - scores[top.index(theirs)]) if ours in top and theirs in top else np.inf
    return Flip(i, where, step, ours, theirs, margin, float(said.arrays["steps.noise"][row]))


def _beam_flip(recorded: Sequence[Said], found: Sequence[Hypothesis], i: int) -> Flip | None:
    """The first place of the n-best list where the hypotheses differ; None if there is none."""
    rank = next((k for k, s in enumerate(recorded) if k >= len(found) or found[k].tokens != s.tokens), len(recorded))
    if rank == len(recorded) and len(found) == len(recorded):
        return None
    if rank >= len(found) or rank >= len(recorded):
        return Flip(i, "beam", 0, -1, -1, np.inf, 0.0)
    ours, theirs = recorded[rank], found[rank]
    step = first_difference(ours.tokens, theirs.tokens)
    tokens = [row[step] if step < len(row) else EOS for row in (ours.tokens, theirs.tokens)]
    other = next((s for s in recorded if s.tokens == theirs.tokens), None)
    if other is None:  # the reference recorded no margin between the two, so none excuses it
        return Flip(i, "beam", step, tokens[0], tokens[1], np.inf, 0.0)
    scale = max(len(other.tokens), 1)
    return Flip(i, "beam", step, tokens[0], tokens[1], ours.score - other.score, (ours.noise + other.noise) / scale)


def _device(runtime: Runtime, said: Golden, limits: Mapping[str, float]) -> Level:
    """L5: the same sentences again, alone, and in another order, against the reference's greedy tokens."""
    level = Level("L5")
    config = _greedy(said.search)
    count = len(said.sources)
    first = golden.decode(runtime, said.sources, config)
    again = golden.decode(runtime, said.sources, config)
    differ = sum(
        a[0].tokens != b[0].tokens or a[0].log_prob != b[0].log_prob for a, b in zip(first, again, strict=True)
    )
    level.findings.append(Finding("L5", "rerun", differ / count, limits["L5.rerun"]))
    order = np.random.default_rng(golden.SEED).permutation(count)
    shuffled = golden.decode(runtime, [said.sources[i] for i in order], config)
    back = {int(i): hypotheses for i, hypotheses in zip(order, shuffled, strict=True)}
    ways = {
        "alone": [golden.decode(runtime, [source], config)[0] for source in said.sources],
        "batched": first,
        "shuffled": [back[i] for i in range(count)],
    }
    for way, found in ways.items():
        flips = [
            _greedy_flip(said, i, hypotheses[0], way)
            for i, hypotheses in enumerate(found)
            if hypotheses[0].tokens != said.greedy[i].tokens
        ]
        wrong = sum(not flip.excused for flip in flips)
        level.flips += flips
        level.findings.append(Finding("L5", f"tokens {way}", wrong / count, limits["L5.tokens"]))
        excused = (len(flips) - wrong) / said.steps()[-1].stop
        level.findings.append(Finding("L5", f"excused {way}", excused, limits["L5.excused"]))
    return level.close()
