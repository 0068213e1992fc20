"""Batches of sentences."""

from __future__ import annotations

from collections.abc import Sequence

from edge_attn.decoding.beam_search import search
from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.decoding.options import SearchConfig
from edge_attn.progress import track
from edge_attn.spec import Runtime

BATCH = 32
"""Sentences of one batch when golden data is recorded and verified."""


def batches(count: int, size: int = BATCH, limit: int | None = None) -> list[range]:
    """Return ranges that cover `count` items in batches of `size`, or of `limit` if that is smaller."""
    size = min(size, limit or size)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def search_batches(
    runtime: Runtime, sources: Sequence[Sequence[int]], config: SearchConfig, alignments: bool = False
) -> list[list[Hypothesis]]:
    """Run `search` in batches of BATCH and return the hypotheses in the order of the sources.

    Args:
        runtime: encoder and step graphs.
        sources: token ids of each source, eos included.
        config: search options.
        alignments: whether the hypotheses contain their attention weights.
    """
    hypotheses: list[list[Hypothesis]] = []
    for rows in track(batches(len(sources), BATCH, runtime.max_batch), len(sources), len):
        hypotheses += search(runtime, [sources[i] for i in rows], config, alignments)
    return hypotheses
