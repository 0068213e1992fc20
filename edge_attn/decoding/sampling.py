"""Drawing tokens by their probabilities, each sample of a sentence from a stream of random numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_attn.decoding.options import SearchConfig


class Sampler:
    """Draws for `searches` samples of each source.

    A sample's stream follows from the seed, the source's tokens and the sample's number: not from the batch or the
    place in it. The same source twice gives the same samples twice. Another runtime rounds probabilities otherwise,
    which may, rarely, turn a draw.
    """

    def __init__(self, config: SearchConfig, sources: Sequence[Sequence[int]]) -> None:
        self.config = config
        streams = [[config.seed, number, *source] for source in sources for number in range(config.searches)]
        self._streams = [np.random.default_rng(stream) for stream in streams]

    def draw(self, log_probs: np.ndarray) -> np.ndarray:
        """The next token of each sample: the first whose cumulated probability passes the next number of its stream.

        The tokens stay in the vocabulary's order, so that two of nearly the same probability do not trade places
        between two runtimes.

        Shapes:
            log_probs (samples, 1, vocab) -> (samples, 1, 1)
        """
        kept = filter_probabilities(log_probs[:, 0].astype(np.float64), self.config)
        sums = np.cumsum(kept, 1)
        drawn = np.array([stream.random() for stream in self._streams])
        target = drawn[:, None] * sums[:, -1:]
        chosen: np.ndarray = np.minimum((sums <= target).sum(1), kept.shape[1] - 1)
        return chosen[:, None, None]


def filter_probabilities(log_probs: np.ndarray, config: SearchConfig) -> np.ndarray:
    """What is drawn from, not normalized: the temperature first, then top-k, then top-p; of equals all or none stay.

    Shapes:
        log_probs (samples, vocab) -> the same
    """
    with np.errstate(invalid="ignore"):  # a row of which nothing can follow
        mass: np.ndarray = np.exp((log_probs - log_probs.max(1, keepdims=True)) / config.temperature)
    if 0 < config.top_k < mass.shape[1]:
        least = np.partition(mass, -config.top_k, 1)[:, -config.top_k, None]
        mass[mass < least] = 0.0
    if config.top_p < 1.0:
        falling = -np.sort(-mass, 1)
        sums = np.cumsum(falling, 1)
        inside = sums - falling < config.top_p * sums[:, -1:]  # the mass before it does not reach p
        least = np.where(inside, falling, np.inf).min(1, keepdims=True)
        mass[mass < least] = 0.0
    return mass
