"""Sampling of tokens by their probabilities, each sample of a sentence from its own random stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_attn.decoding.options import SearchConfig


class Sampler:
    """Random streams of `searches` samples of each source.

    A stream depends on the seed, the source's tokens and the sample's number alone, not on the batch or the position
    in it: equal sources have equal samples. Another runtime rounds probabilities differently, which may, rarely,
    change a token.
    """

    def __init__(self, config: SearchConfig, sources: Sequence[Sequence[int]]) -> None:
        self.config = config
        streams = [[config.seed, number, *source] for source in sources for number in range(config.searches)]
        self._streams = [np.random.default_rng(stream) for stream in streams]

    def draw(self, log_probs: np.ndarray) -> np.ndarray:
        """Return the next token of each sample: the first whose cumulative probability exceeds the next random number.

        The tokens stay in the order of the vocabulary, so that two of nearly the same probability do not change places
        between two runtimes.

        Shapes:
            log_probs (samples, 1, vocab) -> (samples, 1, 1)
        """
        probabilities = filter_probabilities(log_probs[:, 0].astype(np.float64), self.config)
        sums = np.cumsum(probabilities, 1)
        numbers = np.array([stream.random() for stream in self._streams])
        target = numbers[:, None] * sums[:, -1:]
        tokens: np.ndarray = np.minimum((sums <= target).sum(1), probabilities.shape[1] - 1)
        return tokens[:, None, None]


def filter_probabilities(log_probs: np.ndarray, config: SearchConfig) -> np.ndarray:
    """Return unnormalized probabilities after temperature, top-k and top-p, in this order. Ties at a cutoff stay.

    Shapes:
        log_probs (samples, vocab) -> the same
    """
    with np.errstate(invalid="ignore"):  # a row that forbids every token
        mass: np.ndarray = np.exp((log_probs - log_probs.max(1, keepdims=True)) / config.temperature)
    if 0 < config.top_k < mass.shape[1]:
        cutoff = np.partition(mass, -config.top_k, 1)[:, -config.top_k, None]
        mass[mass < cutoff] = 0.0
    if config.top_p < 1.0:
        descending = -np.sort(-mass, 1)
        sums = np.cumsum(descending, 1)
        inside = sums - descending < config.top_p * sums[:, -1:]  # the mass before it does not reach p
        cutoff = np.where(inside, descending, np.inf).min(1, keepdims=True)
        mass[mass < cutoff] = 0.0
    return mass
