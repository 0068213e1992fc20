"""Every implementation of an op agrees with its float64 oracle, the expected value of all tests here."""

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
    PENALIZED,
    RECURRENT,
    Arrays,
    Case,
    expected,
    inputs,
    oracle,
)
from op_implementations import (
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
    """An implementation, and the cases, dtype, tolerance and masks with which it is tested."""

    run: Callable[[str, dict[str, np.ndarray]], Arrays]
    cases: dict[str, Case]
    dtype: str
    tolerance: Tolerance
    masks: tuple[str, ...] = MASKS


NOT_RECURRENT = ATTENTION | ENERGIES | PENALIZED
TABLE = (
    Row(torch_eager, CASES, "float32", FP32),
    Row(torch_eager, CASES, "float64", FP64),
    Row(torch_autograd, CASES, "float32", FP32),
    Row(torch_autograd, CASES, "float64", FP64),
    Row(onnx_function, CASES, "float32", FP32),
    Row(onnx_inlined, CASES, "float32", FP32),
    # ONNX Runtime does not run the float64 bodies of Gru and Lstm: "GRU operator does not support double yet", LSTM the
    # same (test_onnxruntime_has_no_float64_recurrent_kernel). The last row tests them with onnx's reference evaluator.
    Row(onnx_function, NOT_RECURRENT | INTRA, "float64", FP64),
    Row(onnx_inlined, NOT_RECURRENT | INTRA, "float64", FP64),
    Row(onnx_reference, NOT_RECURRENT | INTRA, "float32", FP32),
    Row(onnx_reference, NOT_RECURRENT | INTRA, "float64", FP64),
    # The evaluator's GRU and LSTM ignore sequence_lens (onnx/reference/ops/op_gru.py), so their bodies are tested
    # with the masks for which that changes nothing: every element real, or none.
    Row(onnx_reference, RECURRENT, "float64", FP64, masks=("all", "no row")),
)
"""Every implementation of every op. A comment above has the reason for each one that is absent."""


def table(*masks: str, cases: dict[str, Case] = CASES) -> list[Any]:
    """Return the pytest parameters: row, case name and mask."""
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
def test_implementation_conforms_to_the_oracle(row: Row, name: str, kind: str, batch: int, length: int) -> None:
    actual = row.run(name, inputs(name, row.dtype, kind, batch, length))
    oracle_outputs = expected(name, row.dtype, kind, batch, length)
    assert_conforms(lower.op(CASES[name].op).outputs, actual, oracle_outputs, row.dtype, row.tolerance)


def test_table_omits_only_documented_rows() -> None:
    """A new op or a removed row must change this test."""
    assert {case.op for case in CASES.values()} == set(OPS)
    held = {(row.run, name, row.dtype) for row in TABLE for name in row.cases if row.masks == MASKS}
    implementations = (torch_eager, torch_autograd, onnx_function, onnx_inlined)
    every = {(run, name, dtype) for run in implementations for name in CASES for dtype in ("float32", "float64")}
    assert every - held == {(run, name, "float64") for run in (onnx_function, onnx_inlined) for name in RECURRENT}


@pytest.mark.parametrize("name", RECURRENT)
def test_onnxruntime_has_no_float64_recurrent_kernel(name: str) -> None:
    """The table omits a row for this reason. Add it if this test fails."""
    with pytest.raises(Exception, match="does not support double"):
        onnx_function(name, inputs(name, "float64", "all", 1, 1))


# ---- the oracle


@pytest.mark.parametrize("name", ATTENTION)
def test_row_without_key_has_zero_weights_and_context(name: str) -> None:
    arrays = inputs(name, "float64", "some rows", 3, 7)
    context, weights = expected(name, "float64", "some rows", 3, 7)
    empty = ~arrays["mask"].any(1)
    assert empty.tolist() == [True, False, False]
    assert (context[empty] == 0).all()
    assert (weights[empty] == 0).all()
    np.testing.assert_allclose(weights[~empty].sum(-1), 1.0, rtol=1e-14)
    assert (np.moveaxis(weights, -1, 1)[~arrays["mask"]] == 0).all()


@pytest.mark.parametrize("name", ENERGIES)
def test_query_without_key_has_zero_weights_and_context(name: str) -> None:
    arrays = inputs(name, "float64", "some rows", 32, 7)
    context, weights = expected(name, "float64", "some rows", 32, 7)
    mask = np.broadcast_to(arrays["mask"], weights.shape)
    if "position" in arrays:
        mask = mask & (np.abs(np.arange(7) - arrays["position"]) <= CASES[name].attributes["window"])
    none = ~mask.any(-1)
    assert none[0].all()
    assert not none.all()
    assert (context[none] == 0).all()
    assert (weights[~mask] == 0).all()
    assert (weights[~none].sum(-1) > 0).all()
    if not CASES[name].attributes.get("gaussian"):
        np.testing.assert_allclose(weights[~none].sum(-1), 1.0, rtol=1e-14)


@pytest.mark.parametrize("name", RECURRENT | INTRA)
def test_row_of_length_zero_has_zero_outputs(name: str) -> None:
    arrays = inputs(name, "float64", "some rows", 3, 7)
    output, *finals = expected(name, "float64", "some rows", 3, 7)
    assert (arrays["lengths"] == 0).tolist() == [True, False, False]
    for result in (output, *finals):
        assert (result[0] == 0).all()
        assert (result[1:, ...] != 0).any(axis=tuple(range(1, result.ndim))).all()


@pytest.mark.parametrize("name", ["gru bidirectional", "lstm bidirectional"])
def test_second_direction_reads_each_row_reversed(name: str) -> None:
    arrays = inputs(name, "float64", "ragged", 3, 7)
    output, last, *_ = expected(name, "float64", "ragged", 3, 7)
    hidden = arrays["r"].shape[2]
    reversed_x = arrays["x"].copy()
    for row, length in enumerate(arrays["lengths"]):
        reversed_x[row, :length] = arrays["x"][row, :length][::-1]
    second = {key: arrays[key][1:] for key in ("w", "r", "b")}
    back, back_last, *_ = oracle(name, {"x": reversed_x, "lengths": arrays["lengths"], **second})
    np.testing.assert_allclose(last[:, hidden:], back_last, rtol=1e-12)
    for row, length in enumerate(arrays["lengths"]):
        np.testing.assert_allclose(output[row, :length, hidden:], back[row, :length][::-1], rtol=1e-12)


# ---- padding


def repadded(arrays: dict[str, np.ndarray], row: int, more: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return one row alone, its padding changed and `more` elements longer before and after the others."""
    alone = {
        key: array[row : row + 1] if key not in ("w", "r", "b", "u", "v") else array for key, array in arrays.items()
    }
    real = (
        alone["mask"].reshape(-1, alone["mask"].shape[-1]).any(0)
        if "mask" in alone
        else np.arange(arrays["x"].shape[1]) < alone["lengths"][0]
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


UNPENALIZED = {name: case for name, case in CASES.items() if name not in PENALIZED}


@pytest.mark.parametrize(("row", "name", "kind"), table("ragged", "some rows", cases=UNPENALIZED))
def test_row_is_independent_of_padding_and_batch(row: Row, name: str, kind: str) -> None:
    arrays = inputs(name, row.dtype, kind, 3, 7)
    oracle_outputs = expected(name, row.dtype, kind, 3, 7)
    names = lower.op(CASES[name].op).outputs
    more = (4, 0) if CASES[name].attributes.get("causal") else (0, 4)  # the last key must stay the last
    for i in range(3):
        actual = list(row.run(name, repadded(arrays, i, more)))
        for j, array in enumerate(oracle_outputs):
            for axis in range(1, array.ndim):
                if actual[j].shape[axis] != array.shape[axis]:
                    before, actual[j], after = np.split(actual[j], [more[0], more[0] + array.shape[axis]], axis)
                    assert (before == 0).all()
                    assert (after == 0).all()
        assert_conforms(
            names, tuple(actual), tuple(array[i : i + 1] for array in oracle_outputs), row.dtype, row.tolerance
        )


# ---- energies far from one


@pytest.mark.parametrize(("row", "name", "kind"), table("some rows", cases=NOT_RECURRENT))
def test_large_energies_are_exact(row: Row, name: str, kind: str) -> None:
    """Energies are near 1e6: exp would overflow, and adding a large negative number would lose their digits."""
    arrays = dict(inputs(name, row.dtype, kind, 3, 7))
    factor = next(key for key in ("v", "u", "query", "energy") if key in arrays)
    arrays[factor] = arrays[factor] * np.array(1e6, row.dtype)
    oracle_outputs = oracle(name, arrays)
    assert_conforms(lower.op(CASES[name].op).outputs, row.run(name, arrays), oracle_outputs, row.dtype, row.tolerance)


# ---- planted errors

PLANTED = {
    "another nonlinearity": ("additive", "Tanh (sum)", "Sigmoid (sum)"),
    "padding takes part": ("additive", "masked = Where (allowed, energy, neg_inf)", "masked = Identity (energy)"),
    "softmax over the wrong axis": ("general", "Softmax <axis = -1>", "Softmax <axis = 1>"),
    "a row with no key is averaged": ("general", "Where (keep, softmax, zero)", "Identity (softmax)"),
    "scale forgotten": ("scaled", "MatMul (scaled, keys_transposed)", "MatMul (query, keys_transposed)"),
    "positions past W take part": ("location", "And (real, has_row)", "Identity (real)"),
    "bias forgotten": ("pooling", "Tanh (sum)", "Tanh (product)"),
    "a penalized row is zero": ("penalized", "Or (mask, attends_anyway)", "Identity (mask)"),
    "every key in the support": ("sparsemax", "Less (gap, one)", "Less (gap, neg_inf)"),
    "padding above the threshold": ("sparsemax, mask per query", "Where (keep_row, larger, zero)", "Identity (larger)"),
    "a threshold over all keys": ("sparsemax", "Where (support, z, zero)", "Identity (z)"),
    "a wider window": ("local-m", "LessOrEqual (distance, width_like)", "LessOrEqual (offset, width_like)"),
    "an open window": ("local-m", "LessOrEqual", "Less"),
    "no Gaussian": ("local-p", "Exp (exponent)", "Exp (neg_inf_float)"),
    "sigma = D": ("local-p", "<value_float = -2.0>", "<value_float = -0.5>"),
    "the Gaussian of local-m": ("local-m", "CastLike (gaussian_int, energy)", "CastLike (width, energy)"),
    "the last of equals": ("hard", "ReduceMin", "ReduceMax"),
    "padding above the largest": ("hard", "Where (mask, energy, neg_inf)", "Identity (energy)"),
    "a row with no key chooses": ("hard", "And (equal, mask)", "Identity (equal)"),
    "always causal": ("multi-head", "Or (past, not_causal)", "Identity (past)"),
    "causal from the first key": (
        "multi-head causal",
        "Range (first_query, src, one_int64)",
        "Range (zero_int64, tgt, one_int64)",
    ),
    "the scale of heads forgotten": ("multi-head", "(scaled, keys_transposed)", "(query_heads, keys_transposed)"),
    "padding takes part in every head": ("multi-head", "And (real, visible)", "Identity (visible)"),
    "heads and tokens exchanged": (
        "multi-head",
        "<perm = [0, 2, 1, 3]> (context_h",
        "<perm = [0, 2, 3, 1]> (context_h",
    ),
    "unwritten slots are read": ("intra", "Where (allowed, energy, neg_inf)", "Identity (energy)"),
    "the tape is overwritten": (
        "intra",
        "Where (slot, state_and_cell_rows, tape)",
        "Where (slot, state_and_cell_rows, zero)",
    ),
    "no query from the summary": ("intra", "Add (x_query, query)", "Identity (x_query)"),
    "no cell from the summary": ("intra", "Add (cell_from_summary, cell_from_input)", "Identity (cell_from_input)"),
    "gates exchanged": ("intra", "sum_i, sum_o, sum_f", "sum_i, sum_f, sum_o"),
    "padding in the output": ("intra", "Where (real, tape_end, zero)", "Identity (tape_end)"),
    "reset before the product": ("gru bidirectional", "linear_before_reset = 1", "linear_before_reset = 0"),
    "lengths ignored": ("gru bidirectional", "w, r, b, lengths_int32)", "w, r, b)"),
    "hidden and cell exchanged": ("lstm forward", "last_raw, last_cell_raw =", "last_cell_raw, last_raw ="),
    "directions exchanged": ("lstm bidirectional", "<perm = [2, 0, 1, 3]>", "<perm = [2, 0, 3, 1]>"),
}


@pytest.mark.parametrize("error", PLANTED)
def test_body_with_planted_error_fails(error: str) -> None:
    name, right, wrong = PLANTED[error]
    op = lower.op(CASES[name].op)
    assert op.body.count(right) == 1
    planted = onnx.ModelProto()
    planted.CopyFrom(model(name, "float32"))
    text = dataclasses.replace(op, body=op.body.replace(right, wrong)).function_text()
    planted.functions[0].CopyFrom(onnx.parser.parse_function(text))

    arrays, oracle_outputs = inputs(name, "float32", "some rows", 32, 7), expected(name, "float32", "some rows", 32, 7)
    assert_conforms(op.outputs, onnx_function(name, arrays), oracle_outputs, "float32", FP32)
    actual = tuple(session(planted).run(None, arrays))
    with pytest.raises(AssertionError, match=r"outside|exactly zero"):
        assert_conforms(op.outputs, actual, oracle_outputs, "float32", FP32)


def test_nan_shape_dtype_and_nonzero_fail_the_comparison() -> None:
    oracle_outputs = np.array([0.0, 1.0])
    for wrong, message in (
        (np.array([0.0, np.nan], np.float32), "1 of 2 outside"),
        (np.array([0.0, 1.0, 0.0], np.float32), "shape"),
        (np.array([0.0, 1.0]), "dtype"),
        (np.array([1e-30, 1.0], np.float32), "exactly zero"),
        (np.array([0.0, 1.0001], np.float32), "1 of 2 outside"),
    ):
        with pytest.raises(AssertionError, match=message):
            assert_conforms(("y",), (wrong,), (oracle_outputs,), "float32", FP32)
    with pytest.raises(AssertionError, match="0 outputs"):
        assert_conforms(("y",), (), (oracle_outputs,), "float32", FP32)
