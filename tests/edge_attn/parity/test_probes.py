"""Tests of probes: seeded projections, and plans that look up every entry in every batch size, beam and length."""

from __future__ import annotations

import math

import numpy as np
import pytest
from table_model import TableModel

from edge_attn.parity import probes
from edge_attn.parity.decoder_probes import (
    MAX_WIDTH,
    Probes,
    candidate_difference,
    plan,
    project_probes,
    run_probes,
)
from edge_attn.text.tokenizers import EOS


def test_order_is_the_same_on_every_machine():
    assert probes.shuffled(8, 1).tolist() == [7, 5, 1, 3, 4, 6, 2, 0]
    assert sorted(probes.shuffled(1000, 3).tolist()) == list(range(1000))


def test_signs_are_balanced():
    signs = probes.signs(4000)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert (signs.sum(0) == 0).all()
    assert len(np.unique(signs, axis=1).T) == probes.PROJECTIONS


def test_projections_show_a_change_of_any_value():
    values = np.random.default_rng(0).standard_normal((3, 5, 40))
    before = probes.project_positions(values, np.array([5, 3, 1]))
    for row, position, column in ((0, 4, 39), (1, 2, 0), (2, 0, 17)):
        changed = values.copy()
        changed[row, position, column] += 1e-3
        apart = np.abs(probes.project_positions(changed, np.array([5, 3, 1])) - before).max(1)
        assert (apart > 1e-6).tolist() == [i == row for i in range(3)]


def test_padding_does_not_change_projections():
    values = np.random.default_rng(0).standard_normal((2, 70, 4))
    padded = np.concatenate([values, np.full((2, 90, 4), np.nan)], 1)
    lengths = np.array([70, 70])
    assert np.array_equal(probes.project_positions(values, lengths), probes.project_positions(padded, lengths))


@pytest.mark.parametrize(("maximum", "count"), [(1, 1), (20, 20), (128, 128), (129, 129), (1000, 160)])
def test_lengths_reach_the_maximum(maximum, count):
    lengths = probes.probed_lengths(maximum)
    assert (lengths[0], lengths[-1], len(lengths)) == (1, maximum, count)


@pytest.mark.parametrize(("count", "limit"), [(5, None), (5000, None), (100, 8)])
def test_entries_run_in_batches_of_every_size(count, limit):
    sizes = probes.batch_sizes(limit)
    batches = list(probes.entry_batches(count, sizes))
    assert {len(batch) for batch in batches} == set(range(1, (limit or 64) + 1))
    assert set(np.concatenate(batches).tolist()) == set(range(count))


class CountingModel(TableModel):
    """A model with equal probabilities that stores the shapes of its steps and the tokens that they are fed."""

    def __init__(self, entries: int, max_batch: int | None = None, max_beam: int | None = None) -> None:
        super().__init__(np.full((1, entries, entries), -math.log(entries)), (), max_batch)
        self.max_beam = max_beam
        self.shapes: set[tuple[int, ...]] = set()
        self.lengths: set[int] = set()
        self.fed: set[int] = set()

    def run(self, graph, inputs):
        if graph == "step":
            self.shapes.add(inputs["tokens"].shape)
            self.lengths.add(inputs["memory.source"].shape[1])
            self.fed |= set(inputs["tokens"].ravel().tolist())
        return super().run(graph, inputs)


def planned(model: TableModel, entries: int, max_source: int = 20) -> Probes:
    return plan(model.graphs, [(5, 4, EOS), (6, EOS)], [(4, 5)], (entries, entries), (max_source, 40))


@pytest.mark.parametrize("entries", [9, 300, 3000])
def test_every_entry_length_batch_and_beam_is_probed(entries):
    model = CountingModel(entries)
    chosen = planned(model, entries)
    for _ in run_probes(model, chosen):
        pass
    assert chosen.entries.tolist() == list(range(entries))
    assert model.fed == set(range(entries))
    assert {batch for batch, _ in model.shapes} == set(range(1, 65))
    assert {beam for _, beam in model.shapes} == set(range(1, MAX_WIDTH + 1))
    assert model.lengths == set(range(1, 21))


def test_every_row_is_recorded():
    model = CountingModel(300)
    chosen = planned(model, 300)
    for graph, rows in (("encoder", chosen.encoder_rows), ("step", chosen.step_rows)):
        for values in project_probes(model, chosen, graph, decode=graph == "step").values():
            assert len(values) == rows
            assert np.isfinite(values).all()
    rows_run = {"encoder": set(), "step": set()}
    for outputs in run_probes(model, chosen):
        rows_run[outputs.graph] |= set(outputs.rows.tolist())
    assert rows_run == {"encoder": set(range(chosen.encoder_rows)), "step": set(range(chosen.step_rows))}


def test_limits_of_the_runtime_are_respected():
    model = CountingModel(300, max_batch=8, max_beam=5)
    for _ in run_probes(model, planned(CountingModel(300), 300)):
        pass
    assert model.fed == set(range(300))
    assert {batch for batch, _ in model.shapes} == set(range(1, 9))
    assert {beam for _, beam in model.shapes} == set(range(1, 6))


def test_probes_survive_their_arrays():
    chosen = planned(CountingModel(30), 30)
    loaded = Probes.from_arrays(chosen.arrays())
    assert loaded.sources == chosen.sources
    assert all(np.array_equal(loaded.arrays()[name], rows) for name, rows in chosen.arrays().items())


def best(log_probs: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.argsort(-log_probs, axis=-1, kind="stable")[..., :count]
    return np.take_along_axis(log_probs, ids, -1), ids


def test_wrong_candidates_differ():
    logits = np.random.default_rng(0).standard_normal((2, 3, 50))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_probs[0, 0, 7:] = -np.inf
    log_probs[0, 0] -= np.log(np.exp(log_probs[0, 0]).sum())
    values, ids = best(log_probs, 6)
    assert candidate_difference(log_probs, values, ids) < 1e-12
    assert candidate_difference(log_probs + 0.1, values + 0.1, ids) == pytest.approx(0.1)  # they sum to more than 1
    assert candidate_difference(log_probs, values, ids[..., ::-1]) > 0.1
    assert candidate_difference(log_probs, values[..., ::-1], ids[..., ::-1]) > 0.1
    assert candidate_difference(log_probs, values + 1e-3, ids) == pytest.approx(1e-3)
    assert candidate_difference(log_probs, values, np.zeros_like(ids)) == np.inf
    assert candidate_difference(log_probs, values, ids + 50) == np.inf
    broken = log_probs.copy()
    broken[1, 1, 3] = np.nan
    assert np.isnan(candidate_difference(broken, *best(broken, 6)))
