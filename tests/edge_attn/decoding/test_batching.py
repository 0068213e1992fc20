"""Tests of batching: batches are complete and in order."""

from __future__ import annotations

from edge_attn.decoding import batching


def test_batches_are_complete_and_in_order():
    assert batching.batches(0) == []
    assert [list(batch) for batch in batching.batches(5, 2)] == [[0, 1], [2, 3], [4]]
