"""The levels of the ladder that verify runs, one function each; a level says what it found, and whether that holds.

L1 and L2 follow the reference's greedy tokens, sentence by sentence and in padded batches; L3 and L5 search freely.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from edge_attn.decoding import batching
from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.decoding.options import SearchConfig
from edge_attn.parity import golden, recorder
from edge_attn.parity.golden import Golden, ReferenceHypothesis
from edge_attn.parity.metrics import chrf, first_difference, largest
from edge_attn.parity.results import LevelResult, Measurement, TensorDifference, TokenMismatch
from edge_attn.spec import Runtime
from edge_attn.text import pipeline
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import EOS

Limits = Mapping[str, float]


# ---- L1 and L2


def graph_and_step(runtime: Runtime, said: Golden, limits: Limits) -> tuple[LevelResult, LevelResult]:
    """L1: encoder outputs, states and alignments. L2: log-probabilities. Both along the reference's greedy tokens."""
    arrays, positions, steps = said.arrays, said.positions(), said.steps()
    specs = {tensor.name: tensor.shape for tensor in runtime.graphs["encoder"].outputs}
    alignments = said.alignments("steps.alignment")
    encoded, states, aligned, spread = TensorDifference(), TensorDifference(), TensorDifference(), TensorDifference()
    divergences, misses = [], 0
    for batch in (1, batching.BATCH):
        observed = recorder.run_teacher_forced(
            runtime, said.sources, [hypothesis.tokens for hypothesis in said.greedy], batch
        )
        for i, seen in enumerate(observed):
            for name, value in seen.encoder.items():
                encoded.add(name, value, arrays[f"encoder.{name}"][positions[i] if "src" in specs[name] else i])
            for name, value in seen.states.items():
                states.add(name, value, arrays[f"steps.{name}"][steps[i]])
            if alignments:
                aligned.add("alignment", _or_nan(seen.alignment), alignments[i])
            expected = {name: arrays[f"steps.{name}"][steps[i]] for name in golden.SUMMARY}
            top = arrays["steps.top_ids"][steps[i]].astype(np.int64)
            found = recorder.summarize(seen.log_probs, top)
            spread.add("log_prob", found["top_log_probs"], expected["top_log_probs"])
            spread.add("rest", found["rest"], expected["rest"])
            spread.add("projection", found["projections"], expected["projections"])
            divergences.append(_divergence(expected, found))
            misses += _top1_misses(seen.log_probs, top, expected["top_log_probs"], arrays["steps.noise"][steps[i]])
    graph, step = LevelResult("L1"), LevelResult("L2")
    for name in encoded.names():
        for measure in ("max_abs", "p99", "relative", "cosine"):
            value = getattr(encoded, measure)(name)
            graph.findings.append(Measurement("L1", f"{measure} {name}", value, limits[f"L1.{measure}"]))
    graph.findings += [Measurement("L1", f"state {n}", states.max_abs(n), limits["L1.state"]) for n in states.names()]
    graph.findings += [Measurement("L1", n, aligned.max_abs(n), limits[f"L1.{n}"]) for n in aligned.names()]
    step.findings += [Measurement("L2", n, spread.max_abs(n), limits[f"L2.{n}"]) for n in spread.names()]
    step.findings.append(Measurement("L2", "kl", largest(np.concatenate(divergences)), limits["L2.kl"]))
    step.findings.append(Measurement("L2", "top1", misses / (2 * steps[-1].stop), limits["L2.top1"]))
    return graph.close(), step.close()


def _divergence(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> np.ndarray:
    """KL of the reference from the candidate over the best entries and the rest, a step each.

        sum p log(p / q) - p + q

    is of second order in their difference even where rounding leaves p and q not quite summing to one.
    """
    p, q = (
        np.concatenate([rows["top_log_probs"], rows["rest"][:, None]], 1).astype(np.float64)
        for rows in (expected, found)
    )
    divergence: np.ndarray = (np.exp(p) * (p - q) - np.exp(p) + np.exp(q)).sum(1)
    return divergence


def _top1_misses(log_probs: np.ndarray, top: np.ndarray, expected: np.ndarray, noise: np.ndarray) -> int:
    """Steps whose best token is another one, where the reference's own margin is not below its noise."""
    chosen = log_probs.argmax(1)
    found = np.where(chosen[:, None] == top, expected, -np.inf).max(1)
    excused = expected[:, 0] - found <= noise
    wrong = (chosen != top[:, 0]) & ~excused | ~np.isfinite(log_probs).all(1)
    return int(wrong.sum())


# ---- L3


def sentence(runtime: Runtime, said: Golden, text: Text, max_source: int, limits: Limits) -> LevelResult:
    """L3: what greedy and beam search give, running free, and the text around them."""
    level = LevelResult("L3")
    beam = batching.search_batches(runtime, said.sources, said.search, True)
    best = _best(batching.search_batches(runtime, said.sources, _greedy(said.search), True))
    _judge(level, said, "tokens", "greedy", _greedy_flips(said, best, "greedy"), limits)
    flips = [_beam_flip(recorded, found, i) for i, (recorded, found) in enumerate(zip(said.n_best, beam, strict=True))]
    _judge(level, said, "n_best", "beam", [flip for flip in flips if flip is not None], limits)
    same = [(h, s) for h, s in zip(best, said.greedy, strict=True) if h.tokens == s.tokens]
    for hypotheses, recorded in zip(beam, said.n_best, strict=True):
        same += [(h, s) for h, s in zip(hypotheses, recorded, strict=False) if h.tokens == s.tokens]
    apart = TensorDifference()
    for name in ("log_prob", "score"):
        pairs = np.array([[getattr(h, name), getattr(s, name)] for h, s in same]).reshape(-1, 2)
        apart.add(name, pairs[:, 0], pairs[:, 1])
    _align(apart, best, said.greedy, said.alignments("steps.alignment"))
    _align(apart, _best(beam), [recorded[0] for recorded in said.n_best], said.alignments("beam.alignment"))
    level.findings += [Measurement("L3", name, apart.max_abs(name), limits[f"L3.{name}"]) for name in apart.names()]
    wrong = sum(text.target.decode(h.tokens) != s.text for h, s in same)
    wrong += recorder.vocabulary_digest(text.target) != said.vocabulary
    for line, source in zip(said.sentences, said.sources, strict=True):
        wrong += tuple(pipeline.encode_truncated(text, line, max_source)[0]) != source
    for where, hypotheses, wanted in (
        ("greedy", best, said.greedy),
        ("beam", _best(beam), [recorded[0] for recorded in said.n_best]),
    ):
        texts = [text.target.decode(hypothesis.tokens) for hypothesis in hypotheses]
        lost = 1.0 - chrf(texts, [recorded.text for recorded in wanted])
        level.findings.append(Measurement("L3", f"chrf {where}", lost, limits["L3.chrf"]))
    level.findings.append(Measurement("L3", "text", wrong / max(len(same), 1), limits["L3.text"]))
    return level.close()


def _align(
    apart: TensorDifference,
    found: Sequence[Hypothesis],
    recorded: Sequence[ReferenceHypothesis],
    alignments: Sequence[np.ndarray],
) -> None:
    """Compares the weights of the hypotheses whose tokens are the reference's: a row a token, the end symbol's last."""
    for hypothesis, said, weights in zip(found, recorded, alignments, strict=False):  # none without attention
        if hypothesis.tokens == said.tokens:
            expected = weights[: len(said.tokens) + said.finished]
            apart.add("alignment", _or_nan(hypothesis.alignment)[..., : weights.shape[1]], expected)


# ---- L5


def device(runtime: Runtime, said: Golden, limits: Limits) -> LevelResult:
    """L5: the same sentences again, alone, and in another order, against the reference's greedy tokens."""
    level = LevelResult("L5")
    config = _greedy(said.search)
    count = len(said.sources)
    first = _best(batching.search_batches(runtime, said.sources, config))
    again = _best(batching.search_batches(runtime, said.sources, config))
    differ = sum(a.tokens != b.tokens or a.log_prob != b.log_prob for a, b in zip(first, again, strict=True))
    level.findings.append(Measurement("L5", "rerun", differ / count, limits["L5.rerun"]))
    alone = _best([batching.search_batches(runtime, [source], config)[0] for source in said.sources])
    order = np.random.default_rng(recorder.SEED).permutation(count)
    shuffled = _best(batching.search_batches(runtime, [said.sources[i] for i in order], config))
    for way, found in (
        ("alone", alone),
        ("batched", first),
        ("shuffled", [shuffled[i] for i in np.argsort(order)]),
    ):
        _judge(level, said, "tokens", way, _greedy_flips(said, found, way), limits)
    return level.close()


# ---- what L3 and L5 share


def _greedy(config: SearchConfig) -> SearchConfig:
    return dataclasses.replace(config, beam=1, n_best=1)


def _best(found: Sequence[Sequence[Hypothesis]]) -> list[Hypothesis]:
    return [hypotheses[0] for hypotheses in found]


def _or_nan(weights: np.ndarray | None) -> np.ndarray:
    return np.full((1,), np.nan) if weights is None else weights


def _judge(
    level: LevelResult, said: Golden, what: str, where: str, flips: Sequence[TokenMismatch], limits: Limits
) -> None:
    """The share of sentences on which nothing excuses another result, and of steps on which something does."""
    wrong = sum(not flip.within_noise for flip in flips)
    excused = (len(flips) - wrong) / said.steps()[-1].stop
    level.flips += flips
    level.findings += [
        Measurement(level.name, f"{what} {where}", wrong / len(said.sources), limits[f"{level.name}.{what}"]),
        Measurement(level.name, f"excused {where}", excused, limits[f"{level.name}.excused"]),
    ]


def _greedy_flips(said: Golden, found: Sequence[Hypothesis], where: str) -> list[TokenMismatch]:
    """Where greedy search left the reference's tokens, and the reference's margin there."""
    flips = []
    for i, (recorded, hypothesis) in enumerate(zip(said.greedy, found, strict=True)):
        real = bool(np.isfinite(hypothesis.log_prob))
        if real and hypothesis.tokens == recorded.tokens:
            continue
        step = first_difference(recorded.tokens, hypothesis.tokens)
        ours, theirs = _token(recorded.tokens, step), _token(hypothesis.tokens, step)
        row = said.steps()[i].start + step
        scores = dict(
            zip(said.arrays["steps.top_ids"][row].tolist(), said.arrays["steps.top_log_probs"][row], strict=True)
        )
        margin = float(scores[ours] - scores[theirs]) if real and {ours, theirs} <= scores.keys() else np.inf
        flips.append(TokenMismatch(i, where, step, ours, theirs, margin, float(said.arrays["steps.noise"][row])))
    return flips


def _beam_flip(recorded: Sequence[ReferenceHypothesis], found: Sequence[Hypothesis], i: int) -> TokenMismatch | None:
    """The first place of the n-best list where the hypotheses differ; None if there is none."""
    lists = [[hypothesis.tokens for hypothesis in recorded], [hypothesis.tokens for hypothesis in found]]
    if lists[0] == lists[1]:
        return None
    rank = next((k for k, (a, b) in enumerate(zip(*lists, strict=False)) if a != b), None)
    if rank is None:  # one list is longer
        return TokenMismatch(i, "beam", 0, -1, -1, np.inf, 0.0)
    ours, theirs = recorded[rank], found[rank]
    step = first_difference(ours.tokens, theirs.tokens)
    tokens = _token(ours.tokens, step), _token(theirs.tokens, step)
    other = next((said for said in recorded if said.tokens == theirs.tokens), None)
    if other is None:  # the reference recorded no margin between the two, so none excuses it
        return TokenMismatch(i, "beam", step, *tokens, np.inf, 0.0)
    return TokenMismatch(i, "beam", step, *tokens, ours.score - other.score, _score_noise(ours) + _score_noise(other))


def _token(tokens: Sequence[int], step: int) -> int:
    return tokens[step] if step < len(tokens) else EOS


def _score_noise(said: ReferenceHypothesis) -> float:
    """Of the score, which is the log-probability times a factor that has none."""
    return abs(said.score / said.log_prob) * said.noise if said.log_prob else said.noise
