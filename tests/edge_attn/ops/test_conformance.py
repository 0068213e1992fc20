"""Each op has many writings and one meaning: its float64 oracle, which is the expected value of every test here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from op_cases import (
    ATTENTION,
    BATCHES,
    CASES,
    ENERGIES,
    INTRA,
    LENGTHS,
    MASKS,
    PENALISED,
    RECURRENT,
    Arrays,
    Case,
    expected,
    inputs,
    oracle,
)
from op_writings import (
    FP32,
    FP64,
    Tolerance,
    assert_conforms,
    model,
    onnx_function,
    onnx_inlined,
    onnx_reference,
    session,
    torch_autograd,
    torch_eager,
)

from edge_attn.export import lower
from edge_attn.registry import OPS

# ---- the table


@dataclasses.dataclass(frozen=True)
class Row:
    """A writing, the ops and the dtype that it is held to, how closely, and over which masks."""

    run: Callable[[str, dict[str, np.ndarray]], Arrays]
    cases: dict[str, Case]
    dtype: str
    tolerance: Tolerance
    masks: tuple[str, ...] = MASKS


NOT_RECURRENT = ATTENTION | ENERGIES | PENALISED
TABLE = (
    Row(torch_eager, CASES, "float32", FP32),
    Row(torch_eager, CASES, "float64", FP64),
    Row(torch_autograd, CASES, "float32", FP32),
    Row(torch_autograd, CASES, "float64", FP64),
    Row(onnx_function, CASES, "float32", FP32),
    Row(onnx_inlined, CASES, "float32", FP32),
    # ONNX Runtime does not run the float64 bodies of Gru and Lstm: "GRU operator does not support double yet", LSTM the
    # same (test_onnxruntime_has_no_float64_kernel). onnx's reference evaluator takes its place, in the last row.
    Row(onnx_function, NOT_RECURRENT | INTRA, "float64", FP64),
    Row(onnx_inlined, NOT_RECURRENT | INTRA, "float64", FP64),
    Row(onnx_reference, NOT_RECURRENT | INTRA, "float32", FP32),
    Row(onnx_reference, NOT_RECURRENT | INTRA, "float64", FP64),
    # The evaluator's GRU and LSTM ignore sequence_lens (onnx/reference/ops/op_gru.py), so their bodies are held to the
    # masks under which that makes no difference: every element real, or none.
    Row(onnx_reference, RECURRENT, "float64", FP64, masks=("all", "no row")),
)
"""Every writing of every op. What is not here has its reason in a comment here."""


def table(*masks: str, cases: dict[str, Case] = CASES) -> list[Any]:
    """Row, case and mask, for pytest."""
    return [
        pytest.param(row, name, kind, id=f"{row.run.__name__}-{row.dtype}-{name}-{kind}")
        for row in TABLE
        for name in cases
        if name in row.cases
        for kind in row.masks
        if kind in masks
    ]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("row", "name", "kind"), table(*MASKS))
def test_every_writing_says_what_the_oracle_says(row: Row, name: str, kind: str, batch: int, length: int) -> None:
    actual = row.run(name, inputs(name, row.dtype, kind, batch, length))
    wanted = expected(name, row.dtype, kind, batch, length)
    assert_conforms(lower.op(CASES[name].op).outputs, actual, wanted, row.dtype, row.tolerance)


def test_the_table_leaves_out_only_what_its_comments_say() -> None:
    """Whoever adds an op or drops a row has to say so here."""
    assert {case.op for case in CASES.values()} == set(OPS)
    held = {(row.run, name, row.dtype) for row in TABLE for name in row.cases if row.masks == MASKS}
    writings = (torch_eager, torch_autograd, onnx_function, onnx_inlined)
    every = {(run, name, dtype) for run in writings for name in CASES for dtype in ("float32", "float64")}
    assert every - held == {(run, name, "float64") for run in (onnx_function, onnx_inlined) for name in RECURRENT}


@pytest.mark.parametrize("name", RECURRENT)
def test_onnxruntime_has_no_float64_kernel(name: str) -> None:
    """The day this fails, the row that is missing from the table for this reason can be added."""
    with pytest.raises(Exception, match="does not support double"):
        onnx_function(name, inputs(name, "float64", "all", 1, 1))


# ---- what the oracle itself must say


@pytest.mark.parametrize("name", ATTENTION)
def test_a_row_with_no_key_has_weights_and_context_zero(name: str) -> None:
    given = inputs(name, "float64", "some rows", 3, 7)
    context, weights = expected(name, "float64", "some rows", 3, 7)
    empty = ~given["mask"].any(1)
    assert empty.tolist() == [True, False, False]
    assert (context[empty] == 0).all()
    assert (weights[empty] == 0).all()
    np.testing.assert_allclose(weights[~empty].sum(-1), 1.0, rtol=1e-14)
    assert (np.moveaxis(weights, -1, 1)[~given["mask"]] == 0).all()


@pytest.mark.parametrize("name", ENERGIES)
def test_a_query_with_no_key_has_weights_and_context_zero(name: str) -> None:
    given = inputs(name, "float64", "some rows", 32, 7)
    context, weights = expected(name, "float64", "some rows", 32, 7)
    mask = np.broadcast_to(given["mask"], weights.shape)
    if "position" in given:
        mask = mask & (np.abs(np.arange(7) - given["position"]) <= CASES[name].attributes["window"])
    none = ~mask.any(-1)
    assert none[0].all()
    assert not none.all()
    assert (context[none] == 0).all()
    assert (weights[~mask] == 0).all()
    assert (weights[~none].sum(-1) > 0).all()
    if not CASES[name].attributes.get("gaussian"):
        np.testing.assert_allclose(weights[~none].sum(-1), 1.0, rtol=1e-14)


@pytest.mark.parametrize("name", RECURRENT | INTRA)
def test_a_row_of_length_zero_has_outputs_and_last_states_zero(name: str) -> None:
    given = inputs(name, "float64", "some rows", 3, 7)
    output, *finals = expected(name, "float64", "some rows", 3, 7)
    assert (given["lengths"] == 0).tolist() == [True, False, False]
    for result in (output, *finals):
        assert (result[0] == 0).all()
        assert (result[1:, ...] != 0).any(axis=tuple(range(1, result.ndim))).all()


@pytest.mark.parametrize("name", ["gru bidirectional", "lstm bidirectional"])
def test_the_second_direction_is_the_first_one_run_on_each_row_turned_round(name: str) -> None:
    given = inputs(name, "float64", "ragged", 3, 7)
    output, last, *_ = expected(name, "float64", "ragged", 3, 7)
    hidden = given["r"].shape[2]
    turned = given["x"].copy()
    for row, length in enumerate(given["lengths"]):
        turned[row, :length] = given["x"][row, :length][::-1]
    second = {key: given[key][1:] for key in ("w", "r", "b")}
    back, back_last, *_ = oracle(name, {"x": turned, "lengths": given["lengths"], **second})
    np.testing.assert_allclose(last[:, hidden:], back_last, rtol=1e-12)
    for row, length in enumerate(given["lengths"]):
        np.testing.assert_allclose(output[row, :length, hidden:], back[row, :length][::-1], rtol=1e-12)


# ---- rows do not hear their padding


def repadded(given: dict[str, np.ndarray], row: int, more: tuple[int, int]) -> dict[str, np.ndarray]:
    """One row alone, its padding filled with other numbers and by `more` elements longer, before and after the rest."""
    alone = {
        key: array[row : row + 1] if key not in ("w", "r", "b", "u", "v") else array for key, array in given.items()
    }
    real = (
        alone["mask"].reshape(-1, alone["mask"].shape[-1]).any(0)
        if "mask" in alone
        else np.arange(given["x"].shape[1]) < alone["lengths"][0]
    )
    for key in ("keys", "values", "x"):
        if key in alone:
            changed = np.pad(alone[key], [(0, 0), more, (0, 0)])
            changed[:, np.flatnonzero(~np.pad(real, more))] = 1e3
            alone[key] = changed
    if "energy" in alone:
        alone["energy"] = np.pad(alone["energy"], [(0, 0), (0, 0), more])
        alone["energy"][:, :, ~np.pad(real, more)] = 1e3
    if "mask" in alone:
        alone["mask"] = np.pad(alone["mask"], [*[(0, 0)] * (alone["mask"].ndim - 1), more])
    return alone


UNPENALISED = {name: case for name, case in CASES.items() if name not in PENALISED}


@pytest.mark.parametrize(("row", "name", "kind"), table("ragged", "some rows", cases=UNPENALISED))
def test_what_a_row_says_depends_neither_on_its_padding_nor_on_its_neighbours(row: Row, name: str, kind: str) -> None:
    given = inputs(name, row.dtype, kind, 3, 7)
    wanted = expected(name, row.dtype, kind, 3, 7)
    names = lower.op(CASES[name].op).outputs
    more = (4, 0) if CASES[name].attributes.get("causal") else (0, 4)  # the last key must stay the last
    for i in range(3):
        actual = list(row.run(name, repadded(given, i, more)))
        for j, array in enumerate(wanted):
            for axis in range(1, array.ndim):
                if actual[j].shape[axis] != array.shape[axis]:
                    before, actual[j], after = np.split(actual[j], [more[0], more[0] + array.shape[axis]], axis)
                    assert (before == 0).all()
                    assert (after == 0).all()
        assert_conforms(names, tuple(actual), tuple(array[i : i + 1] for array in wanted), row.dtype, row.tolerance)


# ---- energies far from one


@pytest.mark.parametrize(("row", "name", "kind"), table("some rows", cases=NOT_RECURRENT))
def test_large_energies_neither_overflow_nor_blur(row: Row, name: str, kind: str) -> None:
    """Energies near 1e6: exp of one would be infinite, and adding a large negative number would lose the rest."""
    given = dict(inputs(name, row.dtype, kind, 3, 7))
    factor = next(key for key in ("v", "u", "query", "energy") if key in given)
    given[factor] = given[factor] * np.array(1e6, row.dtype)
    wanted = oracle(name, given)
    assert_conforms(lower.op(CASES[name].op).outputs, row.run(name, given), wanted, row.dtype, row.tolerance)


# ---- the alarm rings

PLANTED = {
    "another nonlinearity": ("additive", "Tanh (sum)", "Sigmoid (sum)"),
    "padding takes part": ("additive", "masked = Where (allowed, energy, never)", "masked = Identity (energy)"),
    "softmax over the wrong axis": ("general", "Softmax <axis = -1>", "Softmax <axis = 1>"),
    "a row with no key is averaged": ("general", "Where (keep, softmax, nothing)", "Identity (softmax)"),
    "scale forgotten": ("scaled", "MatMul (scaled, keys_turned)", "MatMul (query, keys_turned)"),
    "positions past W take part": ("location", "And (real, known)", "Identity (real)"),
    "bias forgotten": ("pooling", "Tanh (sum)", "Tanh (product)"),
    "a penalised row is zero": ("penalised", "Or (mask, averaged)", "Identity (mask)"),
    "every key in the support": ("sparsemax", "Less (gap, unit)", "Less (gap, never)"),
    "padding above the threshold": ("sparsemax, own masks", "Where (keep_row, larger, nothing)", "Identity (larger)"),
    "a threshold over all keys": ("sparsemax", "Where (support, z, nothing)", "Identity (z)"),
    "a wider window": ("local-m", "LessOrEqual (distance, width_like)", "LessOrEqual (offset, width_like)"),
    "an open window": ("local-m", "LessOrEqual", "Less"),
    "no Gaussian": ("local-p", "Exp (exponent)", "Exp (minus_infinity)"),
    "sigma = D": ("local-p", "<value_float = -2.0>", "<value_float = -0.5>"),
    "the Gaussian of local-m": ("local-m", "CastLike (bell, energy)", "CastLike (width, energy)"),
    "the last of equals": ("hard", "ReduceMin", "ReduceMax"),
    "padding above the largest": ("hard", "Where (mask, energy, never)", "Identity (energy)"),
    "a row with no key chooses": ("hard", "And (equal, mask)", "Identity (equal)"),
    "always causal": ("multi-head", "Or (past, all_seen)", "Identity (past)"),
    "causal from the first key": ("multi-head causal", "Range (more, src, step)", "Range (first, tgt, step)"),
    "the scale of heads forgotten": ("multi-head", "(scaled, keys_turned)", "(query_heads, keys_turned)"),
    "padding takes part in every head": ("multi-head", "And (real, seen)", "Identity (seen)"),
    "heads put together crosswise": (
        "multi-head",
        "<perm = [0, 2, 1, 3]> (context_h",
        "<perm = [0, 2, 3, 1]> (context_h",
    ),
    "slots that are not written yet are read": ("intra", "Where (allowed, energy, never)", "Identity (energy)"),
    "the tape forgets": ("intra", "Where (slot, both_rows, tape)", "Where (slot, both_rows, none)"),
    "the summary asks nothing": ("intra", "Add (now_query, query)", "Identity (now_query)"),
    "the summary's cell unheard": ("intra", "Add (kept, added)", "Identity (added)"),
    "gates exchanged": ("intra", "sum_i, sum_o, sum_f", "sum_i, sum_f, sum_o"),
    "padding is put out": ("intra", "Where (real, tape_end, none)", "Identity (tape_end)"),
    "reset before the product": ("gru bidirectional", "linear_before_reset = 1", "linear_before_reset = 0"),
    "lengths unheard": ("gru bidirectional", "(steps, w, r, b, rows)", "(steps, w, r, b)"),
    "hidden and cell exchanged": ("lstm forward", "last_raw, last_cell_raw =", "last_cell_raw, last_raw ="),
    "directions exchanged": ("lstm bidirectional", "<perm = [2, 0, 1, 3]>", "<perm = [2, 0, 3, 1]>"),
}


@pytest.mark.parametrize("error", PLANTED)
def test_a_body_with_a_planted_error_does_not_conform(error: str) -> None:
    name, right, wrong = PLANTED[error]
    op = lower.op(CASES[name].op)
    assert op.body.count(right) == 1
    planted = onnx.ModelProto()
    planted.CopyFrom(model(name, "float32"))
    text = dataclasses.replace(op, body=op.body.replace(right, wrong)).function_text()
    planted.functions[0].CopyFrom(onnx.parser.parse_function(text))

    given, wanted = inputs(name, "float32", "some rows", 32, 7), expected(name, "float32", "some rows", 32, 7)
    assert_conforms(op.outputs, onnx_function(name, given), wanted, "float32", FP32)
    actual = tuple(session(planted).run(None, given))
    with pytest.raises(AssertionError, match=r"outside|exactly zero"):
        assert_conforms(op.outputs, actual, wanted, "float32", FP32)


def test_nan_a_wrong_shape_a_wrong_dtype_and_an_almost_zero_do_not_conform() -> None:
    wanted = np.array([0.0, 1.0])
    for wrong, why in (
        (np.array([0.0, np.nan], np.float32), "1 of 2 outside"),
        (np.array([0.0, 1.0, 0.0], np.float32), "shape"),
        (np.array([0.0, 1.0]), "dtype"),
        (np.array([1e-30, 1.0], np.float32), "exactly zero"),
        (np.array([0.0, 1.0001], np.float32), "1 of 2 outside"),
    ):
        with pytest.raises(AssertionError, match=why):
            assert_conforms(("y",), (wrong,), (wanted,), "float32", FP32)
    with pytest.raises(AssertionError, match="0 outputs"):
        assert_conforms(("y",), (), (wanted,), "float32", FP32)
