"""Log-probabilities of existing translations, token by token (teacher forcing).

    log p(y | x) = sum_j log p(y_j | y_1 ... y_{j-1}, x),    perplexity = exp(-log p(y | x) / J)

where the end symbol is y_J and counts as a token. A perplexity is per token of this model: models with other
vocabularies are compared by their log-probabilities alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_attn.decoding.decoder import teacher_force
from edge_attn.errors import InputError
from edge_attn.runtimes.tasks.alignment import pharaoh, word_pharaoh
from edge_attn.runtimes.tasks.batching import BATCH_TOKENS, by_length
from edge_attn.spec import Runtime
from edge_attn.text.pipeline import Text, truncate
from edge_attn.text.tokenizers import EOS, UNK

Pair = tuple[str, str]

LONGEST_TARGET = 4096
"""Maximum number of target tokens, each of which is a step of the decoder. A longer target is no sentence."""


@dataclass(frozen=True)
class Score:
    """Log-probabilities of one translation of one sentence."""

    tokens: tuple[str, ...]
    """Target tokens without the end symbol."""
    log_probs: tuple[float, ...]
    """Log-probability of each token after those before it, the end symbol's last."""
    source_tokens: tuple[str, ...]
    unknown: int
    """Number of target tokens that are not in the vocabulary; each is scored as the unknown token."""
    cut: bool = False
    """True if the source was longer than the model's maximum, so that only its beginning was read."""
    source_length: int = 0
    """Number of tokens of the whole source, without the end symbol."""
    alignment: np.ndarray | None = field(default=None, compare=False)
    """Attention weights (tokens + 1, source_tokens), with the end symbol's row and column; None without attention."""

    @property
    def log_prob(self) -> float:
        """Return the log-probability of the whole target."""
        return float(np.sum(self.log_probs))

    @property
    def perplexity(self) -> float:
        """Return the perplexity per token."""
        return perplexity(self.log_prob, len(self.log_probs))

    def pharaoh(self) -> str:
        """Return `i-j` for each target token j and the source token i with its largest weight, without end symbols."""
        return pharaoh(self.alignment, len(self.tokens))

    def word_pharaoh(self, text: Text) -> str:
        """Return `i-j` for each target word j, as `alignment.word_pharaoh`. Words are separated by white space."""
        target = text.target.spaced(self.tokens)
        return word_pharaoh(self.alignment, text.source.spaced(self.source_tokens[:-1]), target)


def perplexity(log_prob: float, tokens: int) -> float:
    """Return exp(-log_prob / tokens), infinity where that is too large."""
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
    """Return the score of each pair, in order.

    A source or a target without tokens is scored like any other: it consists of its end symbol.

    Args:
        runtime: encoder and step graphs.
        text: tokenizers of both sides.
        max_source: maximum source length in tokens.
        pairs: (source, target) pairs.
        alignments: whether scores contain their attention weights.
        batch_tokens: maximum number of tokens in a batch, with padding.

    Raises:
        InputError: a pair that is not two strings, or a target of more than LONGEST_TARGET tokens.
    """
    sources: list[list[int]] = []
    targets: list[list[int]] = []
    lengths: list[int] = []
    for i, pair in enumerate(pairs):
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not is_pair or not all(isinstance(side, str) for side in pair):
            raise InputError(f"pair {i} must be (source, target), two strings, got {pair!r}")
        source, target = text.encode_source(pair[0]), text.target.encode(pair[1])
        if len(target) > LONGEST_TARGET:
            raise InputError(f"pair {i}: the target has {len(target)} tokens, at most {LONGEST_TARGET} can be scored")
        sources.append(truncate(source, max_source))
        targets.append(target)
        lengths.append(len(source) - 1)
    longer = {i: max(source, [*targets[i], EOS], key=len) for i, source in enumerate(sources)}
    scores: dict[int, Score] = {}
    for indices in by_length(longer, batch_tokens, runtime.max_batch):
        batch = _score_batch(runtime, [sources[i] for i in indices], [targets[i] for i in indices], alignments)
        for i, (log_probs, weights) in zip(indices, batch, strict=True):
            scores[i] = Score(
                tuple(text.target.pieces(targets[i])),
                tuple(map(float, log_probs)),
                tuple(text.source.pieces(sources[i])),
                targets[i].count(UNK),
                lengths[i] >= len(sources[i]),
                lengths[i],
                weights,
            )
    return [scores[i] for i in range(len(sources))]


def _score_batch(
    runtime: Runtime, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], alignments: bool
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield the log-probabilities (tgt + 1) of each target and its end symbol, and their attention weights."""
    complete = [(*target, EOS) for target in targets]
    rows = np.arange(len(complete))
    log_probs: list[np.ndarray] = []  # (batch) a step
    weights: list[np.ndarray] = []  # (batch, src) a step
    for step, (decoder, outputs) in enumerate(teacher_force(runtime, sources, targets)):
        expected = [target[min(step, len(target) - 1)] for target in complete]
        log_probs.append(runtime.numpy(outputs["log_probs"])[rows, 0, expected])
        if alignments and decoder.has_alignment:
            weights.append(decoder.read_alignment(outputs)[:, 0])
    for i, target in enumerate(complete):
        steps = len(target)
        alignment = np.stack([step[i, : len(sources[i])] for step in weights[:steps]]) if weights else None
        yield np.array([step[i] for step in log_probs[:steps]], np.float64), alignment
