"""Constraints on the next token: prefixes, suppressed tokens, minimum length, and penalties on repetition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import UsageError
from edge_attn.text.tokenizers import BOS, EOS, PAD

NEVER_SELECTED = [PAD, BOS]
"""Tokens that are never selected where whole rows are ranked; a prefix may contain them."""


class LogitsProcessors:
    """Search options that adjust whole rows of log-probabilities. A row is one search of one sentence.

    Raises:
        UsageError: a prefix with a token that is not in the vocabulary, longer than `max_length`, or with tokens after
            its end symbol.
    """

    def __init__(self, config: SearchConfig, prefixes: Sequence[Sequence[int]], vocabulary: int) -> None:
        for prefix in prefixes:
            _check_tokens("a prefix", prefix, vocabulary)
        longest = max(map(len, prefixes), default=0)
        room = config.max_length - (config.alternatives > 0)
        if longest > room:
            raise UsageError(f"a prefix has {longest} tokens, and `max_length` leaves room for {room}")
        if any(EOS in prefix[:-1] for prefix in prefixes):
            raise UsageError(f"a prefix has tokens after its end symbol ({EOS})")
        self._config = config
        self._suppressed = list(config.suppress)
        self.penalized = config.repetition_penalty != 1.0
        self.needs_tokens = self.penalized or config.no_repeat_ngram > 0
        """True if the earlier tokens of a hypothesis are an input."""
        self._always = self.needs_tokens or bool(config.suppress)
        self._active_positions = max(longest + (config.alternatives > 0), config.min_length)
        self._prefix = np.full((len(prefixes), longest), -1)
        for row, prefix in zip(self._prefix, prefixes, strict=True):
            row[: len(prefix)] = prefix
        self._prefix = np.repeat(self._prefix, config.searches, 0)
        self._lengths = np.repeat([len(prefix) for prefix in prefixes], config.searches)
        self._search_index = np.tile(np.arange(config.searches), len(prefixes))

    def active(self, position: int) -> bool:
        """Return whether anything constrains the token at `position`, which counts from 1."""
        return self._always or position <= self._active_positions

    def __call__(self, log_probs: np.ndarray, tokens: np.ndarray, position: int) -> np.ndarray:
        """Return the log-probabilities adjusted for `position`; forbidden tokens get -inf.

        Args:
            log_probs: (rows, width, vocab).
            tokens: earlier tokens of each hypothesis, (rows, width, position - 1), if `needs_tokens`.
            position: position of the token in the target, from 1.
        """
        penalized = log_probs
        if self.penalized:
            penalized = log_probs.copy()
            repeated = np.take_along_axis(log_probs, tokens, 2) * self._config.repetition_penalty
            np.put_along_axis(penalized, tokens, repeated, 2)
        allowed = penalized.copy()  # (rows, width, vocab)
        if self._always or self._config.sample or position <= self._config.min_length:
            allowed[:, :, NEVER_SELECTED] = -np.inf
        if self._suppressed:
            allowed[:, :, self._suppressed] = -np.inf
        if position <= self._config.min_length:
            allowed[:, :, EOS] = -np.inf
        if 0 < self._config.no_repeat_ngram < position:
            _block_repeated(allowed, tokens, self._config.no_repeat_ngram)
        if self._config.alternatives:
            self._branch(allowed, position)
        if position <= self._prefix.shape[1]:
            rows = np.flatnonzero(self._prefix[:, position - 1] >= 0)
            forced = self._prefix[rows, position - 1]
            _allow_only(allowed, rows, forced, penalized[rows, :, forced])
        return allowed

    def _branch(self, allowed: np.ndarray, position: int) -> None:
        """Allow search number n only the n-th most probable token, where a prefix has just ended."""
        rows = np.flatnonzero(self._lengths == position - 1)
        if len(rows):
            allowed[rows[:, None], :, NEVER_SELECTED] = -np.inf
            best = np.argsort(-allowed[rows, 0], axis=1, kind="stable")
            ranks = np.minimum(self._search_index[rows], best.shape[1] - 1)
            tokens = best[np.arange(len(rows)), ranks]
            scores = np.where((ranks == self._search_index[rows])[:, None], allowed[rows, :, tokens], -np.inf)
            _allow_only(allowed, rows, tokens, scores)


def check_suppressed(tokens: Sequence[int], vocabulary: int) -> None:
    """Refuse tokens that cannot be suppressed.

    Raises:
        UsageError: a token that is not in the vocabulary, or the end symbol.
    """
    _check_tokens("suppress", tokens, vocabulary)
    if EOS in tokens:
        raise UsageError(f"suppress contains the end symbol ({EOS}): no sentence would end; use `min_length`")


def _check_tokens(name: str, tokens: Sequence[int], vocabulary: int) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise UsageError(f"{name} contains the token {token}, the vocabulary has {vocabulary} entries")


def _allow_only(allowed: np.ndarray, rows: np.ndarray, tokens: np.ndarray, scores: np.ndarray) -> None:
    """Allow one token in each of `rows`, with `scores` (rows, width)."""
    allowed[rows] = -np.inf
    allowed[rows, :, tokens] = scores


def _block_repeated(allowed: np.ndarray, tokens: np.ndarray, size: int) -> None:
    """Forbid each token that would repeat an n-gram of `size` tokens of the hypothesis."""
    seen = np.lib.stride_tricks.sliding_window_view(tokens, size, 2)
    latest = tokens[:, :, None, tokens.shape[2] - size + 1 :]
    same = (seen[..., :-1] == latest).all(3)
    rows, columns, _ = np.nonzero(same)
    allowed[rows, columns, seen[same][:, -1]] = -np.inf
