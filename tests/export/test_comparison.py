"""Tests of the comparison with torch: scale, noise, NaN and infinities, integers, random modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge_attn
from edge_attn.errors import ExportError
from edge_attn.export import comparison
from edge_attn.export.comparison import Comparison, check_repeatable, run_module
from edge_attn.spec import GraphSpec, TensorSpec

torch.set_num_threads(1)

NAN, INF = float("nan"), float("inf")


class Identity(nn.Module):
    """Returns its input: an output is what a test puts in."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def judge(actual, expected, module: nn.Module | None = None, dtype: str = "float32") -> str:
    """Return the sentence about integers, or raise, for one output at one shape."""
    expected = np.array(expected, dtype)
    spec = GraphSpec("", (TensorSpec("x", dtype, ("n",)),), (TensorSpec("y", dtype, ("n",)),))
    judged = Comparison(module or Identity(), spec)
    sentence = judged.add("here", [expected], [np.array(actual, dtype)], [expected])
    judged.conclude()
    return sentence


# ---- scale and noise


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e3, 1e6, 1e30])
def test_floats_are_judged_by_their_scale(scale):
    values = np.array([0.5, -1.0, 0.25]) * scale
    judge(values * (1 + 5e-6), values)
    with pytest.raises(ExportError, match=r"here: y differs from torch by .*; values up to .* may differ by 1e-05 of"):
        judge(values * [1, 1, 1 + 5e-5], values)


def test_small_value_beside_a_large_one_is_compared():
    judge([1000.0, 1e-3 + 5e-4], [1000.0, 1e-3])  # 5e-7 of the largest
    with pytest.raises(ExportError, match="differs from torch"):
        judge([1000.0, 5e-3], [1000.0, 1e-3])


def test_each_output_and_shape_is_judged_by_itself():
    x = TensorSpec("x", "float32", ("n",))
    spec = GraphSpec("", (x,), (TensorSpec("large", "float32", ("n",)), TensorSpec("small", "float32", ("n",))))
    large, small = np.float32([1e4]), np.float32([1e-4])
    judged = Comparison(Twice(), spec)
    judged.add("at 1", [small], [large, small], [large, small])
    judged.add("at 2", [small], [large, small * np.float32(1.01)], [large, small])
    with pytest.raises(ExportError, match="at 2: small differs from torch by 1e-06"):
        judged.conclude()


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Cancels(nn.Module):
    """Returns what fp32 loses of a small addend: noise that fp64 does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1000.0) - 1000.0


def test_noise_of_the_module_widens_the_bound():
    x = np.array([1e-3, 2e-3, 3e-3], "float32")
    [expected] = run_module(Cancels(), [x])
    spec = GraphSpec("", (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))
    for factor, holds in ((1.0, True), (20.0, False)):
        judged = Comparison(Cancels(), spec)
        judged.add("here", [x], [expected + np.float32(3e-5 * factor)], [expected])
        if holds:
            judged.conclude()
        else:
            with pytest.raises(ExportError, match="differs from torch"):
                judged.conclude()


def test_residue_of_rounding_at_one_shape_has_the_scale_of_the_others():
    """The mean over one position is the position: torch returns 0, another library 1e-8."""
    spec = GraphSpec("", (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))
    judged = Comparison(Identity(), spec)
    zero, one = np.zeros(1, "float32"), np.ones(1, "float32")
    judged.add("at 1", [zero], [zero + np.float32(1e-8)], [zero])
    judged.add("at 2", [one], [one], [one])
    judged.conclude()


class FixedDtype(nn.Module):
    """Does not run in fp64."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.eye(x.shape[-1], dtype=torch.float32)


def test_module_that_does_not_run_in_fp64_has_a_wider_bound():
    values = np.array([1.0, 2.0])
    judge(values * (1 + 5e-5), values, FixedDtype())
    with pytest.raises(ExportError, match="differs from torch"):
        judge(values * (1 + 5e-4), values, FixedDtype())
    with pytest.raises(ExportError, match="differs from torch"):
        judge(values * (1 + 5e-5), values)


def test_fp16_has_the_bounds_of_its_rounding():
    values = np.linspace(-1, 1, 9)
    judge(values + 5e-4, values, dtype="float16")
    with pytest.raises(ExportError, match="differs from torch"):
        judge(values + 0.05, values, dtype="float16")


# ---- NaN and infinities


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_nan_and_infinities_of_torch_are_right(value):
    judge([1.0, value], [1.0, value])


@pytest.mark.parametrize(
    ("actual", "expected"), [(NAN, 1.0), (INF, 1.0), (1.0, NAN), (1.0, -INF), (INF, -INF), (NAN, INF), (INF, NAN)]
)
def test_other_nan_or_infinity_than_torch_fails(actual, expected):
    with pytest.raises(ExportError, match=rf"here: y is {actual:.3g} at \(1,\) where torch returns {expected:.3g}"):
        judge([1.0, actual], [1.0, expected])


def test_difference_beside_nan_is_seen():
    with pytest.raises(ExportError, match=r"differs from torch by 0\.5"):
        judge([NAN, 1.5], [NAN, 1.0])


def test_output_without_a_finite_value_proves_nothing():
    with pytest.raises(ExportError, match="y is empty, NaN or infinite at every checked shape"):
        judge([NAN, NAN], [NAN, NAN])


# ---- integers and booleans


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool"])
def test_integers_are_exact_up_to_ties(dtype):
    values = np.arange(1000) % 2
    assert judge(values, values, dtype=dtype) == ""
    swapped = values.copy()
    swapped[:2] = 1 - swapped[:2]
    kind = "booleans" if dtype == "bool" else "integers"
    assert judge(swapped, values, dtype=dtype) == f"here: y: 2 of 1000 {kind} differ from torch"
    with pytest.raises(ExportError, match=f"here: y: 11 of 1000 {kind} differ from torch"):
        judge(np.where(np.arange(1000) < 11, 1 - values, values), values, dtype=dtype)


class Largest(nn.Module):
    """Returns the position of the largest value; `wrong` shifts it where there is one position."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


def test_integers_that_are_wrong_at_one_shape_fail(tmp_path, monkeypatch):
    """One wrong integer of thousands over all shapes."""
    inputs, outputs = {"x": ("float32", ["batch", "src"])}, {"y": ("int64", ["batch"])}
    edge_attn.export_module(Largest(), tmp_path / "own.onnx", inputs, outputs)

    def wrong_at_one(module, values):
        [result] = run_module(module, values)
        return [result + (values[0].shape == (1, 2))]

    monkeypatch.setattr("edge_attn.export.checks.run_module", wrong_at_one)
    with pytest.raises(ExportError, match=r"batch 1, src 2: y: 1 of 1 integers differ .* 3 other draws"):
        edge_attn.export_module(Largest(), tmp_path / "other.onnx", inputs, outputs)
    assert not (tmp_path / "other.onnx").exists()


# ---- modules that are random, large, masked


class Random(nn.Module):
    def __init__(self, size: float, kind: str) -> None:
        super().__init__()
        self.layer, self.size, self.kind, self.calls = nn.Linear(8, 8), size, kind, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.layer(x)
        if self.kind == "dropout":
            y = nn.functional.dropout(y, 0.5, training=True)
        elif self.kind == "noise":
            y = y + 1e-3 * torch.randn_like(y)
        elif self.kind == "sampling":
            y = torch.multinomial(y.softmax(-1), 1)[:, :1] + 0 * y
        else:
            y = y + 0.1 * self.calls
        return y * self.size


@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize("kind", ["dropout", "noise", "sampling", "state"])
def test_random_module_is_named(tmp_path, size, kind):
    out = tmp_path / "random.onnx"
    torch.manual_seed(1)
    with pytest.raises(ExportError, match=r"Random is random or keeps state between calls: run twice"):
        edge_attn.export_module(
            Random(size, kind), out, {"x": ("float32", ["batch", 8])}, {"y": ("float32", ["batch", 8])}
        )
    assert not out.exists()


def test_module_that_does_not_run_is_reported_by_the_exporter():
    check_repeatable(nn.Linear(3, 3), [np.zeros((1, 4), "float32")])


class Loud(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.layer, self.size = nn.Linear(64, 8), size

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)) * self.size


@pytest.mark.parametrize("size", [1e-9, 32767.0, 1e20])
def test_module_of_any_scale_exports(tmp_path, size):
    inputs = {"x": ("float32", ["batch", "src", 64])}
    edge_attn.export_module(Loud(size), tmp_path / "own.onnx", inputs, {"y": ("float32", ["batch", "src", 8])})


def test_fp16_module_exports(tmp_path):
    module = nn.Sequential(nn.Linear(16, 16), nn.Tanh()).half()
    inputs = {"x": ("float16", ["batch", 16])}
    edge_attn.export_module(module, tmp_path / "own.onnx", inputs, {"y": ("float16", ["batch", 16])})


class Masked(nn.Module):
    """Softmax over what a mask leaves: NaN in a row without a key."""

    def forward(self, energy: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        masked = energy.masked_fill(~mask, -torch.inf)
        return masked.softmax(1), masked


def test_nan_of_an_empty_mask_is_that_of_torch(tmp_path):
    inputs = {"energy": ("float32", ["batch", "src"]), "mask": ("bool", ["batch", "src"])}
    outputs = {"weights": ("float32", ["batch", "src"]), "masked": ("float32", ["batch", "src"])}
    edge_attn.export_module(Masked(), tmp_path / "own.onnx", inputs, outputs)


class FiniteSoftmax(nn.Module):
    def forward(self, energy: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        masked = energy.masked_fill(~mask, -torch.inf)
        return masked.softmax(1).nan_to_num(0.0), masked


def test_graph_with_zeros_for_nan_of_torch_fails(tmp_path, monkeypatch):
    def of_the_other(module, values):
        return comparison.run_module(Masked(), values)

    monkeypatch.setattr("edge_attn.export.checks.run_module", of_the_other)
    inputs = {"energy": ("float32", ["batch", "src"]), "mask": ("bool", ["batch", "src"])}
    outputs = {"weights": ("float32", ["batch", "src"]), "masked": ("float32", ["batch", "src"])}
    with pytest.raises(ExportError, match=r"weights is 0 at .* where torch returns nan"):
        edge_attn.export_module(FiniteSoftmax(), tmp_path / "own.onnx", inputs, outputs)
