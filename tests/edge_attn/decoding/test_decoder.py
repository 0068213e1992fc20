"""Dropping the rows of finished sentences from the batch does not change the hypotheses."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from table_decoder import TableDecoder, random_tables

from edge_attn.decoding.beam_search import search
from edge_attn.decoding.options import SearchConfig
from edge_attn.text.tokenizers import EOS

VOCABULARY = 6
SOURCES = [[i, 0, 0] for i in range(24)]


class BatchRecorder(TableDecoder):
    """Decoder that records the batch size of each step; without `can_select`, it cannot select rows."""

    def __init__(self, can_select: bool) -> None:
        tables = random_tables(5, len(SOURCES), VOCABULARY)
        tables[:, :, EOS] += 1.0  # every sentence ends, at different steps
        super().__init__(tables)
        self.can_select, self.batches = can_select, []

    def run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if graph == "step":
            self.batches.append(len(inputs["tokens"]))
        return super().run(graph, inputs)

    def select_rows(self, value: np.ndarray, index: np.ndarray) -> np.ndarray | None:
        return super().select_rows(value, index) if self.can_select else None


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 1},
        {"beam": 3, "n_best": 3, "coverage_penalty": 0.2},
        {"beam": 2, "min_length": 3, "no_repeat_ngram": 2},
        {"beam": 1, "n_best": 3, "sample": True, "seed": 4},
        {"beam": 4, "n_best": 4, "groups": 2, "diversity": 0.5},
    ],
    ids=lambda options: "-".join(options),
)
def test_dropped_rows_do_not_change_hypotheses(options):
    config = SearchConfig(max_length=30, **options)
    dropping, full = BatchRecorder(can_select=True), BatchRecorder(can_select=False)
    hypotheses, expected = (search(runtime, SOURCES, config, alignments=True) for runtime in (dropping, full))
    assert hypotheses == expected
    for n_best, expected_n_best in zip(hypotheses, expected, strict=True):
        for hypothesis, reference in zip(n_best, expected_n_best, strict=True):
            np.testing.assert_array_equal(hypothesis.alignment, reference.alignment)
    assert set(full.batches) == {len(SOURCES)}
    assert dropping.batches[0] == len(SOURCES)
    assert min(dropping.batches) <= len(SOURCES) // 2
    assert dropping.batches == sorted(dropping.batches, reverse=True)
    assert len(dropping.batches) == len(full.batches)


def test_rows_are_dropped_only_when_half_are_finished():
    """Copying the memory after each finished sentence would cost more time than it saves."""
    runtime = BatchRecorder(can_select=True)
    search(runtime, SOURCES, SearchConfig(beam=1, max_length=30))
    sizes = list(dict.fromkeys(runtime.batches))
    assert all(2 * after <= before for before, after in itertools.pairwise(sizes))
