"""Verification levels of encoder-decoder models: L1, L2, L3 and L5.

L1 and L2 follow the reference's greedy tokens, sentence by sentence and in padded batches. L3 and L5 search freely.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from edge_attn.decoding.batching import BATCH, search_batches
from edge_attn.decoding.decoder import ENCODER
from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.decoding.options import SearchConfig
from edge_attn.parity import recorder
from edge_attn.parity.figures import Figure, StepFigures
from edge_attn.parity.golden import SUMMARY, Golden, ReferenceHypothesis
from edge_attn.parity.metrics import chrf, first_difference
from edge_attn.parity.results import LevelResult, Measurement, TensorDifference, TokenMismatch
from edge_attn.parity.text_digests import differing
from edge_attn.parity.tolerances import Bounds
from edge_attn.runtimes.tasks.probe_figures import probe_figures
from edge_attn.spec import Runtime
from edge_attn.text.pipeline import Text, encode_truncated
from edge_attn.text.tokenizers import EOS

# ---- L1 and L2


def compare_graphs_and_steps(
    runtime: Runtime, golden: Golden, text: Text, bounds: Bounds
) -> tuple[LevelResult, LevelResult]:
    """Compare along the reference's greedy tokens and on its probes.

    L1: encoder outputs, states, alignments. L2: log-probabilities.

    Args:
        runtime: the runtime to verify.
        golden: results of the reference.
        text: tokenizers of the bundle, for the entries in findings.
        bounds: largest accepted values, by name.
    """
    arrays, positions, steps = golden.arrays, golden.positions(), golden.steps()
    per_position = {tensor.name for tensor in runtime.graphs[ENCODER].outputs if "src" in tensor.shape}
    alignments = golden.alignments("steps.alignment")
    targets = [hypothesis.tokens for hypothesis in golden.greedy]
    figures, misses = StepFigures(per_position), 0
    for batch in (1, BATCH):
        for i, outputs in enumerate(recorder.run_teacher_forced(runtime, golden.sources, targets, batch)):
            figures.add_encoder(
                {name: value if name in per_position else value[None] for name, value in outputs.encoder.items()},
                {
                    name: arrays[f"encoder.{name}"][positions[i] if name in per_position else slice(i, i + 1)]
                    for name in outputs.encoder
                },
                i,
            )
            top = arrays["steps.top_ids"][steps[i]].astype(np.int64)  # (steps, TOP)
            actual = recorder.step_arrays(outputs, top)
            expected = {name: arrays[f"steps.{name}"][steps[i]] for name in (*outputs.states, *SUMMARY)}
            if alignments:
                expected["alignment"] = alignments[i]
                actual.setdefault("alignment", _or_nan(None))
            else:
                actual.pop("alignment", None)
            figures.add_steps(actual, expected, i)
            misses += _top1_misses(outputs.log_probs, top, expected["top_log_probs"], arrays["steps.noise"][steps[i]])
    levels = {name: LevelResult(name) for name in ("L1", "L2")}
    top1 = Figure("L2", "top1", misses / (2 * steps[-1].stop), part="step")
    for figure in (*figures, top1, *probe_figures(runtime, golden, text)):
        levels[figure.level].measurements.append(bounds.measurement(figure, golden.noise))
    return levels["L1"].conclude(), levels["L2"].conclude()


def _top1_misses(log_probs: np.ndarray, top: np.ndarray, expected: np.ndarray, noise: np.ndarray) -> int:
    """Count the steps with another best token, where the reference's own margin is above its noise.

    Args:
        log_probs: log-probabilities of the candidate, (steps, vocab).
        top: ids of the reference's best tokens, (steps, TOP).
        expected: their log-probabilities, (steps, TOP).
        noise: noise of the reference, (steps).
    """
    best = log_probs.argmax(1)
    reference = np.where(best[:, None] == top, expected, -np.inf).max(1)
    within_noise = expected[:, 0] - reference <= noise
    broken = np.isnan(log_probs) | np.isposinf(log_probs)  # -inf is a probability of 0; the projections compare it
    wrong = (best != top[:, 0]) & ~within_noise | broken.any(1)
    return int(wrong.sum())


# ---- L3


def compare_sentences(runtime: Runtime, golden: Golden, text: Text, max_source: int, bounds: Bounds) -> LevelResult:
    """Compare the results of greedy and beam search, and text processing (L3).

    Args:
        runtime: the runtime to verify.
        golden: results of the reference.
        text: tokenizers of the bundle.
        max_source: maximum source length in tokens.
        bounds: largest accepted values, by name.
    """
    level = LevelResult("L3")
    beam = search_batches(runtime, golden.sources, golden.search, True)
    best_of_beam, references = _best(beam), [recorded[0] for recorded in golden.n_best]
    greedy = _best(search_batches(runtime, golden.sources, _greedy(golden.search), True))
    _add_mismatches(level, golden, "tokens", "greedy", _greedy_mismatches(golden, greedy, "greedy", text), bounds)
    pairs = zip(golden.n_best, beam, golden.sentences, strict=True)
    mismatches = [
        _beam_mismatch(recorded, actual, i, source, text) for i, (recorded, actual, source) in enumerate(pairs)
    ]
    _add_mismatches(level, golden, "n_best", "beam", [m for m in mismatches if m is not None], bounds)
    same = [(h, r) for h, r in zip(greedy, golden.greedy, strict=True) if h.tokens == r.tokens]
    for hypotheses, recorded in zip(beam, golden.n_best, strict=True):
        same += [(h, r) for h, r in zip(hypotheses, recorded, strict=False) if h.tokens == r.tokens]
    difference = TensorDifference()
    for name in ("log_prob", "score"):
        values = np.array([[getattr(h, name), getattr(r, name)] for h, r in same]).reshape(-1, 2)
        difference.add(name, values[:, 0], values[:, 1])
    _add_alignments(difference, greedy, golden.greedy, golden.alignments("steps.alignment"))
    _add_alignments(difference, best_of_beam, references, golden.alignments("beam.alignment"))
    for name in difference.names():
        place = functools.partial(difference.place, name, row="")
        figure = Figure("L3", name, difference.max_abs(name), part="score", place=place)
        level.measurements.append(bounds.measurement(figure, golden.noise))
    for where, hypotheses, expected in (("greedy", greedy, golden.greedy), ("beam", best_of_beam, references)):
        texts = [text.target.decode(hypothesis.tokens) for hypothesis in hypotheses]
        loss = 1.0 - chrf(texts, [reference.text for reference in expected])
        level.measurements.append(Measurement("L3", f"chrf {where}", loss, bounds["L3.chrf"], "text processing"))
    decoded = [repr(r.text) for h, r in same if text.target.decode(h.tokens) != r.text]
    faults = [*_text_faults(golden, text, max_source), *decoded]
    others = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    share, first = len(faults) / max(len(same), 1), f"{faults[0]}{others}" if faults else ""
    level.measurements.append(Measurement("L3", "text", share, bounds["L3.text"], "text processing", place=first))
    return level.conclude()


def _text_faults(golden: Golden, text: Text, max_source: int) -> list[str]:
    """Return what is encoded or decoded in another way than by the reference: entries, lines and sentences."""
    faults = []
    for side, tokenizer in (("source", text.source), ("target", text.target)):
        if side in golden.text_digests:
            faults += [f"{side} {chunk}" for chunk in differing(tokenizer, golden.text_digests[side])]
    if recorder.vocabulary_digest(text.target) != golden.vocabulary and not faults:
        faults.append("a target entry")
    for i, (sentence, source) in enumerate(zip(golden.sentences, golden.sources, strict=True)):
        if tuple(encode_truncated(text, sentence, max_source)[0]) != source:
            faults.append(f"sentence {i}")
    return faults


def _add_alignments(
    difference: TensorDifference,
    actual: Sequence[Hypothesis],
    recorded: Sequence[ReferenceHypothesis],
    alignments: Sequence[np.ndarray],
) -> None:
    """Add the weights of the hypotheses that have the reference's tokens: a row a token, the end symbol's last."""
    for hypothesis, reference, weights in zip(actual, recorded, alignments, strict=False):  # none without attention
        if hypothesis.tokens == reference.tokens:
            expected = weights[: len(reference.tokens) + reference.finished]
            difference.add("alignment", _or_nan(hypothesis.alignment)[..., : weights.shape[1]], expected)


# ---- L5


def compare_reruns(runtime: Runtime, golden: Golden, text: Text, bounds: Bounds) -> LevelResult:
    """Compare greedy search again, one by one, in batches and in another order, with the reference's tokens (L5).

    Args:
        runtime: the runtime to verify.
        golden: results of the reference.
        text: tokenizers of the bundle, for the texts of mismatches.
        bounds: largest accepted values, by name.
    """
    level = LevelResult("L5")
    config = _greedy(golden.search)
    count = len(golden.sources)
    first = _best(search_batches(runtime, golden.sources, config))
    again = _best(search_batches(runtime, golden.sources, config))
    differ = sum(a.tokens != b.tokens or a.log_prob != b.log_prob for a, b in zip(first, again, strict=True))
    level.measurements.append(Measurement("L5", "rerun", differ / count, bounds["L5.rerun"], "rerun"))
    alone = _best([search_batches(runtime, [source], config)[0] for source in golden.sources])
    order = np.random.default_rng(recorder.SEED).permutation(count)
    shuffled = _best(search_batches(runtime, [golden.sources[i] for i in order], config))
    for variation, hypotheses in (
        ("alone", alone),
        ("batched", first),
        ("shuffled", [shuffled[i] for i in np.argsort(order)]),
    ):
        mismatches = _greedy_mismatches(golden, hypotheses, variation, text)
        _add_mismatches(level, golden, "tokens", variation, mismatches, bounds)
    return level.conclude()


# ---- shared by L3 and L5


def _greedy(config: SearchConfig) -> SearchConfig:
    return dataclasses.replace(config, beam=1, n_best=1)


def _best(n_best: Sequence[Sequence[Hypothesis]]) -> list[Hypothesis]:
    return [hypotheses[0] for hypotheses in n_best]


def _or_nan(weights: np.ndarray | None) -> np.ndarray:
    return np.full((1,), np.nan) if weights is None else weights


def _add_mismatches(
    level: LevelResult, golden: Golden, bound: str, where: str, mismatches: Sequence[TokenMismatch], bounds: Bounds
) -> None:
    """Add mismatches, their share of sentences if above the noise, and their share of steps if within it.

    Args:
        level: result to extend.
        golden: results of the reference.
        bound: name of the bound of the first share, without its level.
        where: search that was compared.
        mismatches: differing sentences.
        bounds: largest accepted values, by name.
    """
    part = f"{where} search" if level.name == "L3" else f"rerun ({where})"
    wrong = sum(not mismatch.within_noise for mismatch in mismatches)
    within_noise = (len(mismatches) - wrong) / golden.steps()[-1].stop
    level.mismatches += mismatches
    level.measurements += [
        Measurement(
            level.name,
            f"{bound} {where}",
            wrong / len(golden.sources),
            bounds[f"{level.name}.{bound}"],
            part,
            *next(((m.sentence, f"step {m.step}") for m in mismatches if not m.within_noise), (-1, "")),
        ),
        Measurement(level.name, f"excused {where}", within_noise, bounds[f"{level.name}.excused"], part),
    ]


def _greedy_mismatches(golden: Golden, hypotheses: Sequence[Hypothesis], where: str, text: Text) -> list[TokenMismatch]:
    """Return where greedy search differs from the reference's tokens, with the reference's margin there."""
    mismatches = []
    for i, (recorded, hypothesis) in enumerate(zip(golden.greedy, hypotheses, strict=True)):
        is_finite = bool(np.isfinite(hypothesis.log_prob))
        if is_finite and hypothesis.tokens == recorded.tokens:
            continue
        step = first_difference(recorded.tokens, hypothesis.tokens)
        expected, actual = _token(recorded.tokens, step), _token(hypothesis.tokens, step)
        row = golden.steps()[i].start + step
        ids, values = golden.arrays["steps.top_ids"][row], golden.arrays["steps.top_log_probs"][row]
        log_probs = dict(zip(ids.tolist(), values, strict=True))
        is_recorded = is_finite and {expected, actual} <= log_probs.keys()
        margin = float(log_probs[expected] - log_probs[actual]) if is_recorded else np.inf
        noise = float(golden.arrays["steps.noise"][row])
        reason = f"the device's log-probability is {hypothesis.log_prob}"
        if is_finite and not is_recorded:
            reason = f"it is not among the reference's {len(ids)} best tokens at that step"
        mismatch = TokenMismatch(i, where, step, expected, actual, margin, noise, reason="" if is_recorded else reason)
        mismatches.append(_with_texts(mismatch, golden.sentences[i], recorded, hypothesis, text))
    return mismatches


def _with_texts(
    mismatch: TokenMismatch, source: str, recorded: ReferenceHypothesis, hypothesis: Hypothesis, text: Text
) -> TokenMismatch:
    """Return the mismatch with the texts and pieces that a reader needs.

    Args:
        mismatch: differing step and tokens.
        source: the source sentence.
        recorded: hypothesis of the reference.
        hypothesis: hypothesis of the runtime.
        text: tokenizers of the bundle.
    """
    reference_piece, candidate_piece = text.target.pieces([mismatch.reference, mismatch.candidate])
    return dataclasses.replace(
        mismatch,
        source=source,
        before=text.target.decode(hypothesis.tokens[: mismatch.step]),
        reference_piece=reference_piece,
        candidate_piece=candidate_piece,
        reference_text=recorded.text,
        candidate_text=text.target.decode(hypothesis.tokens),
    )


def _beam_mismatch(
    recorded: Sequence[ReferenceHypothesis], hypotheses: Sequence[Hypothesis], sentence: int, source: str, text: Text
) -> TokenMismatch | None:
    """Return the first rank of the n-best list with different tokens, or None.

    Args:
        recorded: n-best list of the reference.
        hypotheses: n-best list of the runtime.
        sentence: index of the sentence.
        source: the sentence.
        text: tokenizers of the bundle.
    """
    lists = [[hypothesis.tokens for hypothesis in recorded], [hypothesis.tokens for hypothesis in hypotheses]]
    if lists[0] == lists[1]:
        return None
    rank = next((k for k, (a, b) in enumerate(zip(*lists, strict=False)) if a != b), None)
    if rank is None:  # one list is longer
        pieces = [f"{len(tokens)} translations" for tokens in lists]
        reason = f"the reference has {pieces[0]}, the device {pieces[1]}"
        return TokenMismatch(sentence, "beam", 0, -1, -1, np.inf, 0.0, source, "", pieces[0], pieces[1], reason=reason)
    expected, actual = recorded[rank], hypotheses[rank]
    step = first_difference(expected.tokens, actual.tokens)
    tokens = _token(expected.tokens, step), _token(actual.tokens, step)
    other = next((reference for reference in recorded if reference.tokens == actual.tokens), None)
    reason = ""
    if other is None:
        margin, noise = np.inf, 0.0
        reason = f"it is not among the reference's {len(recorded)} translations"
    else:
        margin, noise = expected.score - other.score, expected.score_noise + other.score_noise
    mismatch = TokenMismatch(sentence, "beam", step, *tokens, margin, noise, reason=reason)
    return _with_texts(mismatch, source, expected, actual, text)


def _token(tokens: Sequence[int], step: int) -> int:
    return tokens[step] if step < len(tokens) else EOS
