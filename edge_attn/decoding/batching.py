"""Batches of sentences."""

from __future__ import annotations

from collections.abc import Sequence

from edge_attn.decoding.beam_search import search
from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.decoding.options import SearchConfig
from edge_attn.spec import Runtime

BATCH = 32
"""Sentences a batch, here and in verify."""


def batches(count: int, size: int = BATCH, most: int | None = None) -> list[range]:
    """Of `size`, or of `most` if a runtime takes no more."""
    size = min(size, most or size)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def search_batches(
    runtime: Runtime, sources: Sequence[Sequence[int]], config: SearchConfig, alignments: bool = False
) -> list[list[Hypothesis]]:
    """`search` in batches of BATCH, in the order given."""
    found: list[list[Hypothesis]] = []
    for rows in batches(len(sources), BATCH, runtime.max_batch):
        found += search(runtime, [sources[i] for i in rows], config, alignments)
    return found
