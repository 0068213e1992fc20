"""Batches of sentences of similar length."""

from __future__ import annotations

from collections.abc import Iterator

BATCH_TOKENS = 1024
"""Maximum size of a batch: source tokens, with padding, times beam."""


def by_length(sources: dict[int, list[int]], batch_tokens: int, max_batch: int | None) -> Iterator[list[int]]:
    """Yield batches of the keys of `sources`, shortest source first.

    Args:
        sources: token ids by index.
        batch_tokens: maximum number of tokens in a batch, with padding; a batch has at least one source.
        max_batch: maximum number of sources in a batch; None means no limit.
    """
    batch: list[int] = []
    for i in sorted(sources, key=lambda i: (len(sources[i]), i)):
        if batch and (len(sources[i]) * (len(batch) + 1) > batch_tokens or len(batch) == max_batch):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
