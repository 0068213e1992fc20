"""Sentences that are done leave the batch where the runtime can take rows out of its values, and nobody hears it."""

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


class Watched(TableDecoder):
    """Its steps' batches; `whole`: it cannot take rows out."""

    def __init__(self, whole: bool) -> None:
        tables = random_tables(5, len(SOURCES), VOCABULARY)
        tables[:, :, EOS] += 1.0  # every sentence ends, one sooner than another
        super().__init__(tables)
        self.whole, self.batches = whole, []

    def run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if graph == "step":
            self.batches.append(len(inputs["tokens"]))
        return super().run(graph, inputs)

    def select_rows(self, value: np.ndarray, index: np.ndarray) -> np.ndarray | None:
        return None if self.whole else super().select_rows(value, index)


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
def test_what_is_found_is_the_same_with_fewer_rows(options):
    config = SearchConfig(max_length=30, **options)
    dropping, whole = Watched(whole=False), Watched(whole=True)
    found, expected = (search(runtime, SOURCES, config, alignments=True) for runtime in (dropping, whole))
    assert found == expected
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one.alignment, other.alignment)
    assert set(whole.batches) == {len(SOURCES)}
    assert dropping.batches[0] == len(SOURCES)
    assert min(dropping.batches) <= len(SOURCES) // 2
    assert dropping.batches == sorted(dropping.batches, reverse=True)
    assert len(dropping.batches) == len(whole.batches)


def test_rows_leave_only_when_half_of_them_are_done():
    """A copy of the memory for every sentence that ends would cost more than it saves."""
    runtime = Watched(whole=False)
    search(runtime, SOURCES, SearchConfig(beam=1, max_length=30))
    sizes = list(dict.fromkeys(runtime.batches))
    assert all(2 * after <= before for before, after in itertools.pairwise(sizes))
