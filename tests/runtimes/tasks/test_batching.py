"""Tests of batching by length."""

from __future__ import annotations

import pytest

from edge_attn.runtimes.tasks import batching


@pytest.mark.parametrize(("max_batch", "largest"), [(None, 8), (3, 3)])
def test_batches_have_similar_lengths_and_each_sentence_once(max_batch, largest):
    sources = {i: [0] * (1 + i % 7) for i in range(50)}
    batches = list(batching.by_length(sources, 12, max_batch))
    assert sorted(i for batch in batches for i in batch) == list(range(50))
    assert all(len(batch) * max(len(sources[i]) for i in batch) <= 12 for batch in batches)
    assert max(map(len, batches)) == largest
    assert list(batching.by_length({3: [0] * 40}, 12, max_batch)) == [[3]]
