"""Encoded sentence pairs, and their batches by number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edge_attn.errors import InputError
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import BOS, EOS, PAD


def choose_samples(text: Text, sources: Sequence[str], count: int = 96) -> list[str]:
    """Return at most `count` distinct sentences, spread evenly over their lengths in tokens, shortest first.

    The choice depends only on the set of `sources`. Sentences without a token or with a line break are omitted.
    """
    lengths = {source: len(text.encode_source(source)) for source in sources if source.strip() and "\n" not in source}
    ordered = sorted((source for source in lengths if lengths[source] > 1), key=lambda s: (lengths[s], s))
    if len(ordered) <= count:
        return ordered
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, count).round().astype(int)]


@dataclass(frozen=True)
class Batch:
    """One padded batch.

    Shapes:
        source (batch, src), source_length (batch), target (batch, tgt) with bos, expected (batch, tgt) with eos
    """

    source: Tensor
    source_length: Tensor
    target: Tensor
    expected: Tensor
    tokens: int
    """Number of real entries of `expected`."""


@dataclass(frozen=True)
class Pairs:
    """Encoded pairs: ids of source (with eos) and of target (with neither bos nor eos)."""

    source: list[list[int]]
    target: list[list[int]]

    @classmethod
    def encode(cls, text: Text, pairs: Sequence[tuple[str, str]], max_tokens: int) -> Pairs:
        """Encode the pairs and omit those with more than `max_tokens` tokens on a side, eos counted.

        Raises:
            InputError: no pair remains.
        """
        encoded = [(text.encode_source(source), text.target.encode(target)) for source, target in pairs]
        short = [(s, t) for s, t in encoded if len(s) <= max_tokens and len(t) < max_tokens]
        if not short:
            raise InputError(f"no pair has at most data.max_tokens = {max_tokens} tokens on each side")
        return cls([s for s, _ in short], [t for _, t in short])

    def order(self, batch_tokens: int, shuffle: tuple[int, int] | None) -> list[np.ndarray]:
        """Return batches of indices, pairs of similar length together.

        A batch has at most `batch_tokens` target tokens, padding counted; a longer pair is a batch alone. `shuffle` is
        (seed, epoch) and defines the order; None orders by length.
        """
        lengths = np.array([len(t) + 1 for t in self.target])
        sources = np.array([len(s) for s in self.source])
        random = None if shuffle is None else np.random.default_rng(shuffle)
        tie = np.arange(len(lengths)) if random is None else random.permutation(len(lengths))
        ordered = np.lexsort((tie, sources, lengths))
        batches, first = [], 0
        for i in range(len(ordered)):
            longest = lengths[ordered[i]]
            if i > first and longest * (i - first + 1) > batch_tokens:
                batches.append(ordered[first:i])
                first = i
        batches.append(ordered[first:])
        return batches if random is None else [batches[i] for i in random.permutation(len(batches))]

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the padded batch of these pairs."""
        source = [self.source[i] for i in indices]
        target = [self.target[i] for i in indices]
        return Batch(
            _pad(source),
            torch.tensor([len(s) for s in source]),
            _pad([[BOS, *t] for t in target]),
            _pad([[*t, EOS] for t in target]),
            sum(len(t) + 1 for t in target),
        )


def _pad(rows: Sequence[Sequence[int]]) -> Tensor:
    padded = torch.full((len(rows), max(map(len, rows))), PAD)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    return padded
