"""Log-probabilities of given translations, token by token (teacher forcing).

    log p(y | x) = sum_j log p(y_j | y_1 ... y_{j-1}, x),    perplexity = exp(-log p(y | x) / J)

where the end symbol is y_J: it counts as a token. The decoder is fed the given tokens, whatever it would have said
itself (teacher forcing). A perplexity is of this model's tokens: models with other vocabularies compare by their
log-probabilities alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_attn.decoding.decoder import teacher_force
from edge_attn.errors import InputError
from edge_attn.runtimes.tasks.alignment import pharaoh
from edge_attn.runtimes.tasks.batching import BATCH_TOKENS, by_length
from edge_attn.spec import Runtime
from edge_attn.text import pipeline
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import EOS, UNK

Pair = tuple[str, str]


@dataclass(frozen=True)
class Score:
    """What the model thinks of one translation of one sentence."""

    tokens: tuple[str, ...]
    """Of the target, the end symbol left out."""
    log_probs: tuple[float, ...]
    """Of each token given those before it, and last that of the end symbol."""
    source_tokens: tuple[str, ...]
    unknown: int
    """Target tokens that the vocabulary does not know; each is scored as the unknown token."""
    cut: bool = False
    """True where the source was longer than the model reads; only its beginning was read."""
    alignment: np.ndarray | None = field(default=None, compare=False)
    """(tokens + 1, source_tokens) attention weights along the target, the end symbol's row and column among them; None
    if the model has no attention or alignments were not asked for."""

    @property
    def log_prob(self) -> float:
        return float(np.sum(self.log_probs))

    @property
    def perplexity(self) -> float:
        return _perplexity(self.log_prob, len(self.log_probs))

    def pharaoh(self) -> str:
        """`i-j` for each target token j and the source token i that it attends to most, the end symbols left out."""
        return pharaoh(self.alignment, len(self.tokens))


def _perplexity(log_prob: float, tokens: int) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(-np.float64(log_prob) / tokens))


def score_pairs(
    runtime: Runtime,
    text: Text,
    max_source: int,
    pairs: Iterable[Pair],
    alignments: bool = False,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Score]:
    """The score of each (source, target), in order; in batches of like length, at most `batch_tokens` each.

    A source or a target without a token is scored as any other: what is left of it is its end symbol.

    Raises:
        InputError: a pair that is not two strings.
    """
    sources: list[list[int]] = []
    targets: list[list[int]] = []
    cut: list[bool] = []
    for i, pair in enumerate(pairs):
        fits = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not fits or not all(isinstance(side, str) for side in pair):
            raise InputError(f"pair {i} must be (source, target), two strings, got {pair!r}")
        source, was_cut = pipeline.encode_truncated(text, pair[0], max_source)
        sources.append(source)
        targets.append(text.target.encode(pair[1]))
        cut.append(was_cut)
    longer = {i: max(source, [*targets[i], EOS], key=len) for i, source in enumerate(sources)}
    found: dict[int, Score] = {}
    for indices in by_length(longer, batch_tokens, runtime.max_batch):
        some, along = [sources[i] for i in indices], [targets[i] for i in indices]
        for i, (log_probs, weights) in zip(indices, _forced(runtime, some, along, alignments), strict=True):
            found[i] = Score(
                tuple(text.target.pieces(targets[i])),
                tuple(map(float, log_probs)),
                tuple(text.source.pieces(sources[i])),
                targets[i].count(UNK),
                cut[i],
                weights,
            )
    return [found[i] for i in range(len(sources))]


def _forced(
    runtime: Runtime, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], alignments: bool
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Of each target, in one batch: the log-probabilities (tgt + 1) of its tokens and its end symbol, and the weights
    (tgt + 1, src) with which they attend."""
    ended = [(*target, EOS) for target in targets]
    rows = np.arange(len(ended))
    said: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for step, (decoding, outputs) in enumerate(teacher_force(runtime, sources, targets)):
        expected = [target[min(step, len(target) - 1)] for target in ended]
        said.append(runtime.numpy(outputs["log_probs"])[rows, 0, expected])
        if alignments and decoding.aligned:
            weights.append(runtime.numpy(outputs["alignment"])[:, 0])
    for i, target in enumerate(ended):
        steps = len(target)
        aligned = np.stack([step[i, : len(sources[i])] for step in weights[:steps]]) if weights else None
        yield np.array([step[i] for step in said[:steps]], np.float64), aligned
