"""Batches of sentences of similar length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

BATCH_TOKENS = 1024
"""Source tokens times beam of one batch, padding counted."""


def by_length(sources: dict[int, list[int]], batch_tokens: int, most: int | None) -> Iterator[list[int]]:
    """Batches of indices of like length, shortest first, at most `batch_tokens` each with padding, and never empty;
    at most `most` indices each."""
    batch: list[int] = []
    for i in sorted(sources, key=lambda i: (len(sources[i]), i)):
        if batch and (len(sources[i]) * (len(batch) + 1) > batch_tokens or len(batch) == most):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
