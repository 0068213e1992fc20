"""Each op has many writings and one meaning: its float64 oracle, which is the expected value of every test here."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from edge_attn.models import torch_ops
from edge_attn.ops import DOMAIN, OPSET
from edge_attn.registry import OPS
from export import lower

torch.set_num_threads(1)

Arrays = tuple[np.ndarray, ...]

# ---- what is called: each op with its shapes and attributes


@dataclasses.dataclass(frozen=True)
class Case:
    """One op as somebody calls it; a string in a shape is a dynamic axis."""

    op: str
    shapes: dict[str, tuple[Any, ...]]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    keys_are_values: bool = False


def attention(attn: int, value: int) -> dict[str, tuple[Any, ...]]:
    return {
        "query": ("batch", "tgt", attn),
        "keys": ("batch", "src", attn),
        "values": ("batch", "src", value),
        "mask": ("batch", "src"),
    }


def recurrent(op: str, gates: int, direction: str, size: int = 5, hidden: int = 6) -> Case:
    directions = {"forward": 1, "bidirectional": 2}[direction]
    shapes: dict[str, tuple[Any, ...]] = {
        "x": ("batch", "src", size),
        "lengths": ("batch",),
        "w": (directions, gates * hidden, size),
        "r": (directions, gates * hidden, hidden),
        "b": (directions, 2 * gates * hidden),
    }
    return Case(op, shapes, {"hidden_size": hidden, "direction": direction})


SCALE = float(np.float32(1 / math.sqrt(6)))
"""An ONNX attribute is a float32: all writings, and the oracle, hear the same number."""

ATTENTION = {
    "additive": Case("AdditiveAttention", {**attention(attn=6, value=5), "v": (6,)}),
    "dot": Case("DotAttention", attention(attn=6, value=6), {"scale": 1.0}, keys_are_values=True),
    "general": Case("DotAttention", attention(attn=6, value=5), {"scale": 1.0}),
    "scaled": Case("DotAttention", attention(attn=6, value=5), {"scale": SCALE}),
}
RECURRENT = {
    "gru forward": recurrent("Gru", 3, "forward"),
    "gru bidirectional": recurrent("Gru", 3, "bidirectional"),
    "lstm forward": recurrent("Lstm", 4, "forward"),
    "lstm bidirectional": recurrent("Lstm", 4, "bidirectional"),
}
CASES = ATTENTION | RECURRENT

# ---- what it is called with

BATCHES = (1, 3, 32)
LENGTHS = (1, 2, 7, 50)
TGT = 3


def lengths_of(kind: str, batch: int, length: int, random: np.random.Generator) -> np.ndarray:
    """How many real elements each row has; one row of `ragged` is full, every third row of `some rows` empty."""
    ragged = random.integers(1, length + 1, batch)
    ragged[1 % batch] = length
    return {
        "all": np.full(batch, length),
        "ragged": ragged,
        "one key": np.ones(batch, np.int64),
        "some rows": np.where(np.arange(batch) % 3 == 0, 0, ragged),
        "no row": np.zeros(batch, np.int64),
    }[kind]


MASKS = ("all", "ragged", "one key", "some rows", "no row")


def mask_of(kind: str, lengths: np.ndarray, length: int, random: np.random.Generator) -> np.ndarray:
    """The same as a mask; the one key may stand anywhere."""
    positions = np.arange(length)
    if kind == "one key":
        return positions == random.integers(0, length, len(lengths))[:, None]
    mask: np.ndarray = positions < lengths[:, None]
    return mask


@functools.cache
def inputs(name: str, dtype: str, kind: str, batch: int, length: int) -> dict[str, np.ndarray]:
    case, random = CASES[name], np.random.default_rng([batch, length, *name.encode(), *kind.encode()])
    lengths = lengths_of(kind, batch, length, random)
    sizes = {"batch": batch, "src": length, "tgt": TGT}
    made = {}
    for key, axes in case.shapes.items():
        shape = tuple(sizes.get(axis, axis) for axis in axes)
        size = (
            case.attributes["hidden_size"] ** -0.5 if key in ("w", "r", "b") else 1.0
        )  # as large as torch starts them
        made[key] = (size * random.standard_normal(shape)).astype(dtype)
    if "mask" in made:
        made["mask"] = mask_of(kind, lengths, length, random)
    if "lengths" in made:
        made["lengths"] = lengths
    if case.keys_are_values:
        made["keys"] = made["values"]
    return made


def oracle(name: str, given: dict[str, np.ndarray]) -> Arrays:
    scale = {key: value for key, value in CASES[name].attributes.items() if key == "scale"}
    return lower.op(CASES[name].op).oracle(*given.values(), **scale)


@functools.cache
def expected(name: str, dtype: str, kind: str, batch: int, length: int) -> Arrays:
    return oracle(name, inputs(name, dtype, kind, batch, length))


# ---- the writings

TORCH_OPS = {
    "AdditiveAttention": torch_ops.additive_attention,
    "DotAttention": torch_ops.dot_attention,
    "Gru": torch_ops.gru,
    "Lstm": torch_ops.lstm,
}


def call_torch(name: str, given: dict[str, np.ndarray], requires_grad: bool) -> tuple[torch.Tensor, ...]:
    tensors = [torch.from_numpy(array) for array in given.values()]
    if requires_grad:
        tensors = [tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in tensors]
    case = CASES[name]
    scale = [case.attributes["scale"]] if "scale" in case.attributes else []
    result: tuple[torch.Tensor, ...] = TORCH_OPS[case.op](*tensors, *scale)
    return result


def torch_eager(name: str, given: dict[str, np.ndarray]) -> Arrays:
    return tuple(tensor.numpy() for tensor in call_torch(name, given, requires_grad=False))


def torch_autograd(name: str, given: dict[str, np.ndarray]) -> Arrays:
    outputs = call_torch(name, given, requires_grad=True)
    assert all(tensor.grad_fn is not None for tensor in outputs)
    return tuple(tensor.detach().numpy() for tensor in outputs)


@functools.cache
def model(name: str, dtype: str) -> onnx.ModelProto:
    case = CASES[name]
    kind = {"float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE}[dtype]
    return lower.op_model(case.op, kind, case.shapes, **case.attributes)


def session(source: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])


def dtype_of(given: dict[str, np.ndarray]) -> str:
    return next(iter(given.values())).dtype.name


@functools.cache
def function_session(name: str, dtype: str) -> onnxruntime.InferenceSession:
    return session(model(name, dtype))


@functools.cache
def inlined_model(name: str, dtype: str) -> onnx.ModelProto:
    inlined = onnx.inliner.inline_local_functions(model(name, dtype))
    assert not inlined.functions
    assert DOMAIN not in {node.domain for node in inlined.graph.node}
    return inlined


@functools.cache
def inlined_session(name: str, dtype: str) -> onnxruntime.InferenceSession:
    return session(inlined_model(name, dtype))


@functools.cache
def evaluator(name: str, dtype: str) -> ReferenceEvaluator:
    return ReferenceEvaluator(inlined_model(name, dtype))


def onnx_function(name: str, given: dict[str, np.ndarray]) -> Arrays:
    return tuple(function_session(name, dtype_of(given)).run(None, given))


def onnx_inlined(name: str, given: dict[str, np.ndarray]) -> Arrays:
    return tuple(inlined_session(name, dtype_of(given)).run(None, given))


def onnx_reference(name: str, given: dict[str, np.ndarray]) -> Arrays:
    return tuple(evaluator(name, dtype_of(given)).run(None, given))


# ---- the comparison


@dataclasses.dataclass(frozen=True)
class Tolerance:
    rtol: float
    atol: float


FP32 = Tolerance(rtol=1e-5, atol=1e-6)
FP64 = Tolerance(rtol=1e-12, atol=1e-12)


def assert_conforms(names: tuple[str, ...], actual: Arrays, wanted: Arrays, dtype: str, tolerance: Tolerance) -> None:
    """Each output has the oracle's shape, the inputs' dtype and the oracle's values; its exact zeros are exact zeros.

    Raises:
        AssertionError: it does not; the sentence names the output.
    """
    assert len(actual) == len(wanted) == len(names), f"{len(actual)} outputs, the oracle has {len(wanted)}"
    for name, ours, theirs in zip(names, actual, wanted, strict=True):
        assert ours.dtype == dtype, f"{name!r} has dtype {ours.dtype}, the inputs {dtype}"
        assert ours.shape == theirs.shape, f"{name!r} has shape {ours.shape}, the oracle {theirs.shape}"
        apart = np.abs(ours.astype(np.float64) - theirs)
        outside = ~(apart <= tolerance.atol + tolerance.rtol * np.abs(theirs))  # NaN counts as outside
        assert not outside.any(), f"{name!r}: {outside.sum()} of {outside.size} outside, max |diff| {apart.max()}"
        assert (ours[theirs == 0.0] == 0.0).all(), f"{name!r} is not exactly zero where the oracle is"


# ---- the table


@dataclasses.dataclass(frozen=True)
class Row:
    """A writing, the ops and the dtype that it is held to, how closely, and over which masks."""

    run: Callable[[str, dict[str, np.ndarray]], Arrays]
    cases: dict[str, Case]
    dtype: str
    tolerance: Tolerance
    masks: tuple[str, ...] = MASKS


TABLE = (
    Row(torch_eager, CASES, "float32", FP32),
    Row(torch_eager, CASES, "float64", FP64),
    Row(torch_autograd, CASES, "float32", FP32),
    Row(torch_autograd, CASES, "float64", FP64),
    Row(onnx_function, CASES, "float32", FP32),
    Row(onnx_inlined, CASES, "float32", FP32),
    # ONNX Runtime does not run the float64 bodies of Gru and Lstm: "GRU operator does not support double yet", LSTM the
    # same (test_onnxruntime_has_no_float64_kernel). onnx's reference evaluator takes its place, in the last row.
    Row(onnx_function, ATTENTION, "float64", FP64),
    Row(onnx_inlined, ATTENTION, "float64", FP64),
    Row(onnx_reference, ATTENTION, "float32", FP32),
    Row(onnx_reference, ATTENTION, "float64", FP64),
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
    assert (weights.transpose(0, 2, 1)[~given["mask"]] == 0).all()


@pytest.mark.parametrize("name", RECURRENT)
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


def repadded(given: dict[str, np.ndarray], row: int, more: int) -> dict[str, np.ndarray]:
    """One row alone, its padding filled with other numbers and `more` elements longer."""
    alone = {key: array[row : row + 1] if key not in ("w", "r", "b", "v") else array for key, array in given.items()}
    real = alone["mask"][0] if "mask" in alone else np.arange(given["x"].shape[1]) < alone["lengths"][0]
    for key in ("keys", "values", "x"):
        if key in alone:
            changed = np.pad(alone[key], [(0, 0), (0, more), (0, 0)])
            changed[:, np.flatnonzero(~np.pad(real, (0, more)))] = 1e3
            alone[key] = changed
    if "mask" in alone:
        alone["mask"] = np.pad(alone["mask"], [(0, 0), (0, more)])
    return alone


@pytest.mark.parametrize(("row", "name", "kind"), table("ragged", "some rows"))
def test_what_a_row_says_depends_neither_on_its_padding_nor_on_its_neighbours(row: Row, name: str, kind: str) -> None:
    given = inputs(name, row.dtype, kind, 3, 7)
    wanted = expected(name, row.dtype, kind, 3, 7)
    names = lower.op(CASES[name].op).outputs
    for i in range(3):
        actual = dict(zip(names, row.run(name, repadded(given, i, more=4)), strict=True))
        for key, axis in (("weights", 2), ("output", 1)):
            if key in actual:
                actual[key], padding = np.split(actual[key], [7], axis)
                assert (padding == 0).all()
        assert_conforms(
            names, tuple(actual.values()), tuple(array[i : i + 1] for array in wanted), row.dtype, row.tolerance
        )


# ---- energies far from one


@pytest.mark.parametrize(("row", "name", "kind"), table("some rows", cases=ATTENTION))
def test_large_energies_neither_overflow_nor_blur(row: Row, name: str, kind: str) -> None:
    """Energies near 1e6: exp of one would be infinite, and adding a large negative number would lose the rest."""
    given = dict(inputs(name, row.dtype, kind, 3, 7))
    given["v" if "v" in given else "query"] = given["v" if "v" in given else "query"] * np.array(1e6, row.dtype)
    wanted = oracle(name, given)
    assert_conforms(lower.op(CASES[name].op).outputs, row.run(name, given), wanted, row.dtype, row.tolerance)


# ---- the alarm rings

PLANTED = {
    "another nonlinearity": ("additive", "Tanh (sum)", "Sigmoid (sum)"),
    "padding takes part": ("additive", "masked = Where (allowed, energy, never)", "masked = Identity (energy)"),
    "softmax over the wrong axis": ("general", "Softmax <axis = -1>", "Softmax <axis = 1>"),
    "a row with no key is averaged": ("general", "Where (keep, softmax, nothing)", "Identity (softmax)"),
    "scale forgotten": ("scaled", "MatMul (scaled, keys_turned)", "MatMul (query, keys_turned)"),
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

    given, wanted = inputs(name, "float32", "some rows", 3, 7), expected(name, "float32", "some rows", 3, 7)
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


# ---- the call rules (edge_attn/ops/__init__.py)


def test_an_op_is_in_the_table_by_its_own_name() -> None:
    assert {name: lower.op(name).name for name in OPS} == {name: name for name in OPS}


def test_op_names_are_unique_over_all_domains() -> None:
    """Neither onnx nor ONNX Runtime's own domains know one: TensorRT looks names up without their domain."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    lower.register_schemas()
    others = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain != DOMAIN}
    others |= {schema.name for schema in get_all_operator_schema() if schema.domain != DOMAIN}
    assert {"LSTM", "Attention", "FusedMatMul"} <= others
    assert not others & set(OPS)


@pytest.mark.parametrize("name", OPS)
def test_a_body_uses_standard_ops_of_opset_18_only(name: str) -> None:
    function = onnx.parser.parse_function(lower.op(name).function_text())
    assert [(entry.domain, entry.version) for entry in function.opset_import] == [("", OPSET)]
    assert function.domain == DOMAIN
    for node in function.node:
        schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)  # raises where there is none
        assert not schema.deprecated
        assert {attribute.name for attribute in node.attribute} <= set(schema.attributes)


@pytest.mark.parametrize("name", OPS)
def test_a_body_says_what_the_op_declares(name: str) -> None:
    op = lower.op(name)
    function = onnx.parser.parse_function(op.function_text())
    assert tuple(function.input) == tuple(op.inputs)
    assert tuple(function.output) == op.outputs
    assert set(function.attribute) == set(op.attributes)
    made = [output for node in function.node for output in node.output]
    used = {value for node in function.node for value in node.input} | set(op.outputs)
    assert len(made) == len(set(made))
    assert set(made) | set(op.inputs) == used


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_a_call_obeys_the_call_rules(name: str, dtype: str) -> None:
    called, op = model(name, dtype), lower.op(CASES[name].op)
    (node,) = called.graph.node
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert given.pop("plugin_namespace") == b"edge_attn"
    assert given.pop("plugin_version") == b"1"
    assert set(given) == set(op.attributes)
    assert tuple(node.input) == tuple(op.inputs)
    assert tuple(node.output) == op.outputs


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_onnx_infers_types_and_ranks_through_a_body_and_its_checker_finds_nothing(name: str, dtype: str) -> None:
    lower.register_schemas()
    inferred = onnx.shape_inference.infer_shapes(inlined_model(name, dtype), check_type=True, strict_mode=True)
    onnx.checker.check_model(inferred, full_check=True)
    types = [output.type.tensor_type for output in inferred.graph.output]
    kind = {"float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE}[dtype]
    assert [t.elem_type for t in types] == [kind] * len(types)
    assert [len(t.shape.dim) for t in types] == [o.ndim for o in expected(name, dtype, "all", 1, 1)]

    called = onnx.ModelProto()
    called.CopyFrom(model(name, dtype))
    for output, described in zip(called.graph.output, inferred.graph.output, strict=True):
        output.type.CopyFrom(described.type)  # the checker wants a shape on each output of a graph
    onnx.checker.check_model(called, full_check=True)
