"""Tests of export_module with what cannot be exported: one sentence, no file, nothing on the standard streams."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edge_attn
from edge_attn.errors import EdgeAttnError

torch.set_num_threads(1)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class RareBranch(nn.Module):
    """Takes one branch for nearly all inputs: a comparison alone does not show the other."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.max() < 100 else x * 0


class Loop(nn.Module):
    """A loop over time in Python, which is fixed at the traced length."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.shape[0], 4)
        for step in range(x.shape[1]):
            hidden = self.cell(x[:, step], hidden)
        return hidden


class Counter(nn.Module):
    """Changes a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


class Stateful(nn.Module):
    """Keeps its state on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.hidden = nn.GRUCell(4, 4), None

    def forward(self, x: Tensor) -> Tensor:
        state = self.hidden if self.hidden is not None and len(self.hidden) == len(x) else torch.zeros(len(x), 4)
        self.hidden = self.cell(x, state)
        return self.hidden


class Dropped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


class Unused(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return 2 * x


class Product(nn.Module):
    """Uses a function that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumprod(1)


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(x.numpy()).sum()


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(9, 2)


class Dict(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"a": x, "b": 2 * x}


class Number(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x + 1, 3


class Two(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first - second


class Fixed(nn.Module):
    """Runs at a length of seven only."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(7, 7) @ x


class Keyword(nn.Module):
    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        return x * scale


class Short(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(4, 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).amax(2)


ROW = {"x": ("float32", ["batch", 4])}
SEQUENCE = {"x": ("float32", ["batch", "src", 4])}
OUT = {"y": ROW["x"]}
LONG = {"y": SEQUENCE["x"]}
AT = r"test_refused_modules\.py:\d+"

REFUSED: dict[str, tuple[Callable[[], Any], Any, Any, dict[str, Any], str]] = {
    "a branch on values": (
        Branch,
        ROW,
        OUT,
        {},
        rf"cannot export Branch, \S*{AT}: it branches on the values .* torch.cond",
    ),
    "a rare branch": (RareBranch, ROW, OUT, {}, rf"cannot export RareBranch, \S*{AT}: it branches on the values"),
    "a loop over time": (Loop, SEQUENCE, OUT, {}, "right at the traced sizes, batch 2, src 7: a Python loop .* nn.GRU"),
    "a changed buffer": (Counter, ROW, OUT, {}, "Counter is random or keeps state between calls"),
    "a state on self": (Stateful, ROW, OUT, {}, "Stateful is random or keeps state between calls"),
    "dropout that is on": (Dropped, ROW, OUT, {}, "Dropped is random"),
    "an unused input": (Unused, {**ROW, "y": ROW["x"]}, {"z": ROW["x"]}, {}, "does not use its input y"),
    "a function without translation": (
        Product,
        SEQUENCE,
        LONG,
        {},
        rf"Product, \S*{AT}: .*cumprod; write it with other",
    ),
    "numpy": (Numpy, ROW, OUT, {}, rf"Numpy, \S*{AT}: .*(numpy|Python numbers)"),
    "a module that does not run": (
        Broken,
        ROW,
        OUT,
        {},
        rf"Broken, \S*{AT} does not run in torch on the inputs x of \(2, 4\)",
    ),
    "keys in another order with another name": (
        Dict,
        ROW,
        {"b": ROW["x"], "c": ROW["x"]},
        {},
        "output 'b' is described at place 1, .* returns the key 'a' there",
    ),
    "names that are swapped in part": (
        Two,
        {"second": ROW["x"], "other": ROW["x"]},
        OUT,
        {},
        "the inputs second, other do not fit forward.first, second",
    ),
    "a number": (Number, ROW, OUT, {}, "output 2 of the module is of type int; return tensors"),
    "too many inputs": (
        Two,
        dict.fromkeys("abc", ROW["x"]),
        OUT,
        {},
        "Two.* does not run in torch on the inputs a, b, c",
    ),
    "one output too many": (
        Dict,
        ROW,
        dict.fromkeys("uvw", ROW["x"]),
        {},
        "2 outputs .a, b., expected 3",
    ),
    "one size": (Fixed, SEQUENCE, LONG, {}, "torch runs Fixed only with src 7 of those tried .* describe the axis"),
    "a minimum that is too small": (
        Short,
        SEQUENCE,
        OUT,
        {"axes": {"src": {"minimum": 3}}},
        "Short does not run in torch at batch 1, src 3, which its",
    ),
    "a keyword that is missing": (Keyword, {"a": ROW["x"], "b": ROW["x"]}, OUT, {}, "forward needs 'scale' by keyword"),
    "an axis of no input": (
        nn.Tanh,
        ROW,
        OUT,
        {"axes": {"time": (1, 5)}},
        "axes describes 'time', which is no axis of",
    ),
    "an axis without sizes": (nn.Tanh, ROW, OUT, {"axes": {"batch": (5, 4)}}, "axes: batch needs a dict of minimum"),
    "one name twice": (nn.Tanh, ROW, ROW, {}, "'x' names an input and an output; ONNX needs two names"),
    "minus one": (
        nn.Tanh,
        {"x": ("float32", [-1, 4])},
        OUT,
        {},
        "x: an axis of any size needs a name, such as 'batch'",
    ),
    "two words": (nn.Tanh, {"x": ("float32", ["batch size", 4])}, OUT, {}, "x: the name of an axis is one word"),
    "a list": (nn.Tanh, [("x", "float32", [4])], OUT, {}, "inputs must be a dict from names to descriptions"),
    "an unknown dtype": (
        nn.Tanh,
        {"x": (torch.bfloat16, ["batch", 4])},
        OUT,
        {},
        "got the dtype 'torch.bfloat16'; known: ",
    ),
    "a range of words": (nn.Tanh, {"x": ("float32", ["batch", 4], ["a", "b"])}, OUT, {}, "does not fit float32"),
    "a mask without its axis": (
        nn.Tanh,
        {"x": ("bool", ["batch", 4], {"some": "src"})},
        OUT,
        {},
        "some is for a boolean",
    ),
    "a function": (lambda: torch.tanh, ROW, OUT, {}, "expected a torch.nn.Module, got builtin"),
    "an example of another shape": (
        nn.Tanh,
        ROW,
        OUT,
        {"examples": [{"x": torch.ones(2, 5)}]},
        r"the example of x is float32 \(2, 5\), expected x",
    ),
    "an example without an input": (nn.Tanh, ROW, OUT, {"examples": [{}]}, "an example is a dict with the inputs x"),
}
TRACED = {"a loop over time", "a function without translation", "numpy", "an unused input", "a rare branch"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in TRACED else ()) for name in REFUSED]
)
def test_refused_module_is_one_sentence(tmp_path, capfd, name):
    make, inputs, outputs, options, sentence = REFUSED[name]
    with pytest.raises(EdgeAttnError) as refused:
        edge_attn.export_module(make(), tmp_path / "module.onnx", inputs, outputs, **options)
    message = str(refused.value)
    assert re.search(sentence, message), message
    assert refused.value.exit_code == 4
    assert len(message) < 700
    assert message.isprintable()
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
