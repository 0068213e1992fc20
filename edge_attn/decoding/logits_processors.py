"""What may come next, and at what price: prefixes, suppressed tokens, least lengths, and no repetition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import UsageError
from edge_attn.text.tokenizers import BOS, EOS, PAD

NO_WORDS = [PAD, BOS]
"""Never chosen where whole rows are ranked; a prefix may hold them."""


class LogitsProcessors:
    """The options of one search that look at whole rows of log-probabilities; a row is one search of one sentence.

    Raises:
        UsageError: a prefix that holds a token which the vocabulary does not have, is longer than `max_length`, or goes
            on after its end symbol.
    """

    def __init__(self, config: SearchConfig, prefixes: Sequence[Sequence[int]], vocabulary: int) -> None:
        for prefix in prefixes:
            _check_tokens("a prefix", prefix, vocabulary)
        longest = max(map(len, prefixes), default=0)
        room = config.max_length - (config.alternatives > 0)
        if longest > room:
            raise UsageError(f"a prefix has {longest} tokens, and max_length leaves room for {room}")
        if any(EOS in prefix[:-1] for prefix in prefixes):
            raise UsageError(f"a prefix goes on after its end symbol ({EOS})")
        self._config = config
        self._suppressed = list(config.suppress)
        self.penalised = config.repetition_penalty != 1.0
        self.remembers = self.penalised or config.no_repeat_ngram > 0
        """Whether `apply` looks at what a hypothesis already holds."""
        self._always = self.remembers or bool(config.suppress)
        self._steps = max(longest + (config.alternatives > 0), config.min_length)
        self._prefix = np.full((len(prefixes), longest), -1)
        for row, prefix in zip(self._prefix, prefixes, strict=True):
            row[: len(prefix)] = prefix
        self._prefix = np.repeat(self._prefix, config.searches, 0)
        self._lengths = np.repeat([len(prefix) for prefix in prefixes], config.searches)
        self._numbers = np.tile(np.arange(config.searches), len(prefixes))

    def at(self, length: int) -> bool:
        """Whether anything constrains the token number `length`, which counts from 1."""
        return self._always or length <= self._steps

    def apply(self, log_probs: np.ndarray, history: np.ndarray, length: int) -> np.ndarray:
        """What each token counts as the token number `length`; -inf for those that must not come.

        Shapes:
            log_probs (rows, width, vocab), history (rows, width, length - 1) if it `remembers` -> (rows, width, vocab)
        """
        worth = log_probs
        if self.penalised:
            worth = log_probs.copy()
            worse = np.take_along_axis(log_probs, history, 2) * self._config.repetition_penalty
            np.put_along_axis(worth, history, worse, 2)
        allowed = worth.copy()
        if self._always or self._config.sample or length <= self._config.min_length:
            allowed[:, :, NO_WORDS] = -np.inf
        if self._suppressed:
            allowed[:, :, self._suppressed] = -np.inf
        if length <= self._config.min_length:
            allowed[:, :, EOS] = -np.inf
        if 0 < self._config.no_repeat_ngram < length:
            _block_repeated(allowed, history, self._config.no_repeat_ngram)
        if self._config.alternatives:
            self._branch(allowed, length)
        if length <= self._prefix.shape[1]:
            rows = np.flatnonzero(self._prefix[:, length - 1] >= 0)
            tokens = self._prefix[rows, length - 1]
            _only(allowed, rows, tokens, worth[rows, :, tokens])
        return allowed

    def _branch(self, allowed: np.ndarray, length: int) -> None:
        """Where a prefix has just ended, leaves search number n the n-th likeliest token alone."""
        rows = np.flatnonzero(self._lengths == length - 1)
        if len(rows):
            allowed[rows[:, None], :, NO_WORDS] = -np.inf
            best = np.argsort(-allowed[rows, 0], axis=1, kind="stable")
            numbers = np.minimum(self._numbers[rows], best.shape[1] - 1)
            tokens = best[np.arange(len(rows)), numbers]
            worth = np.where((numbers == self._numbers[rows])[:, None], allowed[rows, :, tokens], -np.inf)
            _only(allowed, rows, tokens, worth)


def check_suppressed(tokens: Sequence[int], vocabulary: int) -> None:
    """Refuses tokens that cannot be suppressed."""
    _check_tokens("suppress", tokens, vocabulary)
    if EOS in tokens:
        raise UsageError(f"suppress holds the end symbol ({EOS}): no sentence would end; use min_length")


def _check_tokens(name: str, tokens: Sequence[int], vocabulary: int) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise UsageError(f"{name} holds the token {token}, the vocabulary {vocabulary} entries")


def _only(allowed: np.ndarray, rows: np.ndarray, tokens: np.ndarray, worth: np.ndarray) -> None:
    """In `rows` leaves one token each, which is worth (rows, width)."""
    allowed[rows] = -np.inf
    allowed[rows, :, tokens] = worth


def _block_repeated(allowed: np.ndarray, history: np.ndarray, size: int) -> None:
    """Blocks each token that would end a sequence of `size` tokens that the hypothesis already holds."""
    seen = np.lib.stride_tricks.sliding_window_view(history, size, 2)
    latest = history[:, :, None, history.shape[2] - size + 1 :]
    same = (seen[..., :-1] == latest).all(3)
    rows, columns, _ = np.nonzero(same)
    allowed[rows, columns, seen[same][:, -1]] = -np.inf
