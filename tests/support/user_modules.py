"""Modules as users of torch write them, with their descriptions, and inputs at other sizes."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's users write
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Tensors = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """A module, the arguments of `export_module`, and calls at other sizes."""

    make: Callable[[], nn.Module]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    calls: Callable[[], list[Tensors]]
    """Flat inputs at several sizes, in the order of their description."""
    call: Callable[..., Any] | None = None
    """How torch is called with flat inputs, where it is not `module(*inputs)`."""
    options: dict[str, Any] = field(default_factory=dict)
    quick: bool = False


def x(batch: int, src: int, size: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, src, size, dtype=dtype)


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 20, shape)


def mask(batch: int, src: int) -> Tensor:
    values = torch.rand(batch, src) < 0.6
    values[:, 0] = True
    return values


SEQUENCE = {"x": ("float32", ["batch", "src", 4])}
SIZES = ((1, 1), (2, 5), (3, 41))
LENGTHS = {"x": SEQUENCE["x"], "lengths": ("int64", ["batch"], [1, "src"])}
FLOAT = ("float32", ["batch", 4])


def sequences() -> list[Tensors]:
    return [(x(*size),) for size in SIZES]


def with_lengths(order: bool = False) -> list[Tensors]:
    calls = []
    for batch, src in SIZES:
        lengths = torch.randint(1, src + 1, (batch,))
        calls.append((x(batch, src), lengths.sort(descending=True).values if order else lengths))
    return calls


class Embedded(nn.Module):
    """An embedding before a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(20, 4), layer

    def forward(self, tokens: Tensor) -> Any:
        return self.layer(self.embedding(tokens))


class First(nn.Module):
    """Only the outputs of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Packed(nn.Module):
    """A recurrent layer over packed sequences."""

    def __init__(self, layer: nn.Module, is_sorted: bool = False, total: bool = True, fill: float = 0.0) -> None:
        super().__init__()
        self.layer, self.is_sorted, self.total, self.fill = layer, is_sorted, total, fill

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        first = self.layer.batch_first
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=first, enforce_sorted=self.is_sorted)
        packed = PackedSequence(torch.tanh(packed.data), *packed[1:])
        output, last = self.layer(packed)
        total = x.shape[1 if first else 0] if self.total else None
        output, _ = pad_packed_sequence(output, batch_first=first, padding_value=self.fill, total_length=total)
        return output, last[0] if isinstance(last, tuple) else last


class Reader(nn.Module):
    """A recurrent encoder whose outputs are the memory of an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 4, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(4, 2, kdim=8, vdim=8, batch_first=True)

    def forward(self, query: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        memory, _ = self.layer(values)
        return self.attention(query, memory, memory, key_padding_mask=~mask)


class Convolution(nn.Module):
    """A convolution of words without padding, and its largest value."""

    def __init__(self, **settings: int) -> None:
        super().__init__()
        self.layer = nn.Conv1d(4, 3, 5, **settings)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x.transpose(1, 2))).amax(2)


class Subsampled(nn.Module):
    """Two strided convolutions in front of an encoder of speech."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.ReLU(), nn.Conv2d(2, 2, 3, 2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x[:, None])
        return y.transpose(1, 2).flatten(2)


class Positions(nn.Module):
    """A table of 64 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(x.shape[1], device=x.device))


class Buffer(nn.Module):
    """Sinusoids in a buffer, and a causal mask of infinities."""

    def __init__(self) -> None:
        super().__init__()
        time = torch.arange(128)[:, None] * torch.exp(torch.arange(0, 4, 2) * -(math.log(1e4) / 4))
        self.register_buffer("positions", torch.cat([time.sin(), time.cos()], 1))
        self.register_buffer("causal", torch.full((128, 128), float("-inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        x = x + self.positions[:length]
        energy = x @ x.transpose(1, 2) / 2 + self.causal[:length, :length]
        return energy.softmax(-1) @ x


class Masked(nn.Module):
    """A softmax over what a mask leaves."""

    def forward(self, query: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        energy = (query[:, None] @ values.transpose(1, 2))[:, 0]
        weights = energy.masked_fill(~mask, float("-inf")).softmax(1)
        return (weights[:, None] @ values)[:, 0], weights


class Attend(nn.Module):
    """Torch's attention with three axes and a mask."""

    def forward(self, query: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, values, values, attn_mask=mask[:, None])


class Causal(nn.Module):
    """Torch's causal attention with heads."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (2, 2)).transpose(1, 2)
        y = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True, scale=0.3)
        return y.transpose(1, 2).flatten(2)


class Halves(nn.Module):
    """A product of the halves of an axis whose size torch infers."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unflatten(-1, (2, 2)).reshape(*x.shape[:2], -1).chunk(2, -1)
        return first * second


class Step(nn.Module):
    """A step of a decoder, whose state is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 4)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, cell = self.cell(x, state)
        return hidden, (hidden, cell)


class Batch(nn.Module):
    """A dict in, a dict out."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sum": batch["left"] + batch["right"], "difference": batch["left"] - batch["right"]}


class Optional(nn.Module):
    """Optional and keyword-only inputs."""

    def forward(self, x: Tensor, bias: Tensor | None = None, *, scale: Tensor | None = None) -> Tensor:
        x = x if bias is None else x + bias
        return x if scale is None else x * scale


Pair = namedtuple("Pair", ["mean", "last"])  # as users write it


class Named(nn.Module):
    """A named tuple out."""

    def forward(self, x: Tensor) -> Pair:
        return Pair(x.mean(1), x[:, -1])


class Kinds(nn.Module):
    """Integers, booleans and floats out, None between them."""

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        return x.argmax(-1), None, [x > 0], x.exp()


class Pooled(nn.Module):
    """Pooling of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.transpose(1, 2)).transpose(1, 2)


class Folded(nn.Module):
    """Joins four frames into one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, 16) * 2


class Chosen(nn.Module):
    """A branch and a loop in TorchScript."""

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x[:, 0])
        for i in range(x.size(1)):
            total = torch.tanh(total + x[:, i])
        if bool(total.sum() > 0):
            total = total * 2
        return total


class Keywords(nn.Module):
    """Any keywords."""

    def forward(self, **inputs: Tensor) -> Tensor:
        return inputs["left"] - 2 * inputs["right"]


class Logarithm(nn.Module):
    """Needs values above zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x.log()


class Listed(nn.Module):
    """A list of tensors in."""

    def forward(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, -1)


def rows(*shapes: tuple[int, ...]) -> Callable[[], list[Tensors]]:
    """Return calls whose inputs are all of each of the shapes, twice."""
    return lambda: [(torch.randn(shape), torch.randn(shape)) for shape in shapes]


def output(*shape: Any, dtype: str = "float32") -> dict[str, Any]:
    return {"y": (dtype, list(shape))}


def recurrent(layer: nn.Module) -> tuple[dict[str, Any], int]:
    """Return the described outputs of an embedded layer that is batch-first."""
    directions, size = 1 + layer.bidirectional, layer.proj_size or layer.hidden_size
    described = {
        "output": ("float32", ["batch", "src", directions * size]),
        "last": ("float32", [directions * layer.num_layers, "batch", size]),
    }
    if isinstance(layer, nn.LSTM):
        described["cell"] = ("float32", [directions * layer.num_layers, "batch", layer.hidden_size])
    return described, size


def embedded(kind: type[nn.RNNBase], quick: bool = False, **settings: Any) -> Case:
    def make() -> nn.Module:
        return Embedded(kind(4, 6, batch_first=True, **settings))

    outputs, _ = recurrent(make().layer)
    tokens = {"tokens": ("int64", ["batch", "src"], [0, 19])}
    return Case(make, tokens, outputs, lambda: [(ids(*size),) for size in SIZES], quick=quick)


def packed(
    kind: type[nn.RNNBase], is_sorted: bool = False, total: bool = True, quick: bool = False, **settings: Any
) -> Case:
    layer = kind(4, 6, batch_first=True, **settings)
    described, _ = recurrent(layer)
    outputs = {"output": described["output"], "last": described["last"]}
    if not total:
        outputs["output"] = ("float32", ["batch", "longest", described["output"][1][2]])
    lengths = {"values": [1, "src"], "order": "descending"} if is_sorted else [1, "src"]
    inputs = {"x": SEQUENCE["x"], "lengths": ("int64", ["batch"], lengths)}
    return Case(
        lambda: Packed(kind(4, 6, batch_first=True, **settings), is_sorted, total, 0.0 if total else 7.0),
        inputs,
        outputs,
        lambda: with_lengths(is_sorted),
        quick=quick,
    )


MASKED_INPUTS = {"query": FLOAT, "values": SEQUENCE["x"], "mask": ("bool", ["batch", "src"], {"some": "src"})}


def masked_calls() -> list[Tensors]:
    return [(torch.randn(b, 4), x(b, s), mask(b, s)) for b, s in SIZES]


CASES: dict[str, Case] = {
    "gru": embedded(nn.GRU, quick=True),
    "gru, two layers, both directions": embedded(nn.GRU, num_layers=2, bidirectional=True),
    "gru without biases": embedded(nn.GRU, bias=False),
    "lstm": embedded(nn.LSTM),
    "lstm, two layers, both directions": embedded(nn.LSTM, num_layers=2, bidirectional=True, dropout=0.5),
    "lstm with a projection": embedded(nn.LSTM, proj_size=3),
    "lstm with a projection, both directions, no biases": embedded(
        nn.LSTM, num_layers=2, proj_size=3, bidirectional=True, bias=False
    ),
    "rnn with tanh": embedded(nn.RNN),
    "rnn with relu, both directions": embedded(nn.RNN, nonlinearity="relu", bidirectional=True, num_layers=2),
    "time first": Case(
        lambda: First(nn.GRU(4, 6, bidirectional=True)),
        {"x": ("float32", ["src", "batch", 4])},
        output("src", "batch", 12),
        lambda: [(torch.randn(s, b, 4),) for b, s in SIZES],
    ),
    "an initial state": Case(
        lambda: nn.LSTM(4, 6, proj_size=2, batch_first=True, bidirectional=True),
        {
            **SEQUENCE,
            "hx": [("float32", [2, "batch", 2]), ("float32", [2, "batch", 6])],
        },
        {
            "output": ("float32", ["batch", "src", 4]),
            "last": ("float32", [2, "batch", 2]),
            "cell": ("float32", [2, "batch", 6]),
        },
        lambda: [(x(b, s), torch.randn(2, b, 2), torch.randn(2, b, 6)) for b, s in SIZES],
        call=lambda module, x, h, c: module(x, (h, c)),
    ),
    "fp64": Case(
        lambda: Causal().double(),
        {"x": ("float64", ["batch", "src", 4])},
        output("batch", "src", 4, dtype="float64"),
        lambda: [(x(*size, dtype=torch.float64),) for size in SIZES],
    ),
    "packed gru": packed(nn.GRU, quick=True),
    "packed lstm, both directions": packed(nn.LSTM, bidirectional=True, num_layers=2),
    "packed lstm with a projection": packed(nn.LSTM, proj_size=3, bidirectional=True),
    "packed in order of lengths": packed(nn.GRU, is_sorted=True, bidirectional=True),
    "packed rnn to the longest": packed(nn.RNN, total=False),
    "attention over a recurrent encoder": Case(
        Reader,
        {
            "query": ("float32", ["batch", "tgt", 4]),
            "values": SEQUENCE["x"],
            "mask": ("bool", ["batch", "src"], {"some": "src"}),
        },
        {"context": ("float32", ["batch", "tgt", 4]), "weights": ("float32", ["batch", "tgt", "src"])},
        lambda: [(x(b, t), x(b, s), mask(b, s)) for b, s, t in ((1, 1, 1), (2, 9, 3), (3, 40, 11))],
    ),
    "convolution, undescribed": Case(
        Convolution,
        SEQUENCE,
        output("batch", 3),
        lambda: [(x(b, s),) for b, s in ((1, 5), (2, 6), (3, 50))],
        quick=True,
    ),
    "convolution of a least length": Case(
        lambda: Convolution(stride=2),
        SEQUENCE,
        output("batch", 3),
        lambda: [(x(b, s),) for b, s in ((1, 5), (2, 6), (3, 50))],
        options={"axes": {"src": {"minimum": 5}}},
    ),
    "strided subsampling": Case(
        Subsampled,
        {"x": ("float32", ["batch", "frames", 20])},
        output("batch", "short", 8),
        lambda: [(x(b, s, 20),) for b, s in ((1, 7), (2, 8), (3, 90))],
        options={"axes": {"frames": {"minimum": 7}}},
    ),
    "pooling": Case(
        Pooled, SEQUENCE, output("batch", "half", 4), lambda: [(x(b, s),) for b, s in ((1, 2), (2, 5), (3, 50))]
    ),
    "frames in fours": Case(
        Folded,
        SEQUENCE,
        output("batch", "quarter", 16),
        lambda: [(x(b, s),) for b, s in ((1, 4), (2, 8), (3, 40))],
        options={"axes": {"src": {"minimum": 4, "multiple": 4}}},
    ),
    "frames in fours, undescribed": Case(
        Folded, SEQUENCE, output("batch", "quarter", 16), lambda: [(x(b, s),) for b, s in ((1, 4), (2, 20), (3, 40))]
    ),
    "a table of positions": Case(
        Positions,
        SEQUENCE,
        output("batch", "src", 4),
        lambda: [(x(b, s),) for b, s in ((1, 1), (2, 33), (3, 64))],
        options={"axes": {"src": (1, 64)}},
    ),
    "buffers with infinities": Case(
        Buffer, SEQUENCE, output("batch", "src", 4), lambda: [(x(b, s),) for b, s in ((1, 1), (2, 33), (3, 100))]
    ),
    "a mask with a key in each row": Case(
        Masked, MASKED_INPUTS, {"context": FLOAT, "weights": ("float32", ["batch", "src"])}, masked_calls
    ),
    "a mask with empty rows": Case(
        Masked,
        {**MASKED_INPUTS, "mask": ("bool", ["batch", "src"])},
        {"context": FLOAT, "weights": ("float32", ["batch", "src"])},
        lambda: [(torch.randn(2, 4), x(2, 3), torch.tensor([[True, False, True], [False] * 3]))],
    ),
    "attention of three axes with a mask": Case(
        Attend,
        {
            "query": ("float32", ["batch", "tgt", 4]),
            "values": SEQUENCE["x"],
            "mask": ("bool", ["batch", "src"]),
        },
        output("batch", "tgt", 4),
        lambda: [
            (x(2, 3), x(2, 5), torch.tensor([[True] * 5, [False] * 5])),
            (x(1, 1), x(1, 1), torch.tensor([[True]])),
        ],
        quick=True,
    ),
    "halves of an inferred axis": Case(Halves, SEQUENCE, output("batch", "src", 2), sequences, quick=True),
    "causal attention": Case(Causal, SEQUENCE, output("batch", "src", 4), sequences),
    "self-attention without weights": Case(
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        {
            "query": SEQUENCE["x"],
            "key": SEQUENCE["x"],
            "value": SEQUENCE["x"],
            "key_padding_mask": ("bool", ["batch", "src"]),
        },
        {"context": SEQUENCE["x"], "weights": ("float32", ["batch", "src", "src"])},
        lambda: [(*[x(b, s)] * 3, ~mask(b, s)) for b, s in SIZES],
        call=lambda module, q, k, v, padding: module(q, k, v, key_padding_mask=padding),
    ),
    "a Transformer encoder": Case(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
        {"src": ("float32", ["batch", "time", 4])},
        output("batch", "time", 4),
        sequences,
    ),
    "a Transformer decoder layer": Case(
        lambda: nn.TransformerDecoderLayer(4, 2, 8, batch_first=True),
        {"tgt": ("float32", ["batch", "tgt_time", 4]), "memory": ("float32", ["batch", "src_time", 4])},
        output("batch", "tgt_time", 4),
        lambda: [(x(1, 1), x(1, 1)), (x(2, 30), x(2, 5))],
    ),
    "a state as a tuple": Case(
        Step,
        {"x": FLOAT, "hidden": FLOAT, "cell": FLOAT},
        {"y": FLOAT, "next_hidden": FLOAT, "next_cell": FLOAT},
        lambda: [tuple(torch.randn(b, 4) for _ in range(3)) for b in (1, 5, 40)],
        call=lambda module, x, h, c: module(x, (h, c)),
        quick=True,
    ),
    "a nested description": Case(
        Step,
        {"x": FLOAT, "state": [FLOAT, FLOAT]},
        {"y": FLOAT, "next_hidden": FLOAT, "next_cell": FLOAT},
        lambda: [tuple(torch.randn(b, 4) for _ in range(3)) for b in (1, 5, 40)],
        call=lambda module, x, h, c: module(x, (h, c)),
    ),
    "dicts, outputs in another order": Case(
        Batch,
        {"left": FLOAT, "right": FLOAT},
        {"difference": FLOAT, "sum": FLOAT},
        rows((1, 4), (7, 4)),
        call=lambda module, left, right: tuple(
            module({"left": left, "right": right})[k] for k in ("difference", "sum")
        ),
    ),
    "a dict as a description": Case(
        Batch,
        {"batch": {"right": FLOAT, "left": FLOAT}},
        {"first": FLOAT, "second": FLOAT},
        rows((1, 4), (7, 4)),
        call=lambda module, right, left: tuple(module({"left": left, "right": right}).values()),
    ),
    "names in another order": Case(
        Masked,
        dict(reversed(list(MASKED_INPUTS.items()))),
        {"context": FLOAT, "weights": ("float32", ["batch", "src"])},
        lambda: [tuple(reversed(call)) for call in masked_calls()],
        call=lambda module, mask, values, query: module(query, values, mask),
    ),
    "optional inputs": Case(
        Optional,
        {"x": FLOAT, "scale": FLOAT},
        output("batch", 4),
        rows((1, 4), (7, 4)),
        call=lambda module, x, scale: module(x, scale=scale),
    ),
    "any keywords": Case(
        Keywords,
        {"right": FLOAT, "left": FLOAT},
        output("batch", 4),
        rows((1, 4), (7, 4)),
        call=lambda module, right, left: module(right=right, left=left),
    ),
    "a list": Case(
        Listed,
        {"one": FLOAT, "two": FLOAT},
        output("batch", 8),
        rows((1, 4), (7, 4)),
        call=lambda module, *parts: module(list(parts)),
    ),
    "a named tuple": Case(
        Named, SEQUENCE, {"last": FLOAT, "mean": FLOAT}, sequences, call=lambda m, x: (m(x).last, m(x).mean)
    ),
    "integers, booleans and None": Case(
        Kinds,
        SEQUENCE,
        {
            "best": ("int64", ["batch", "src"]),
            "positive": ("bool", ["batch", "src", 4]),
            "y": SEQUENCE["x"],
        },
        sequences,
        call=lambda module, x: (module(x)[0], module(x)[2][0], module(x)[3]),
    ),
    "a scripted module": Case(lambda: torch.jit.script(Chosen()), SEQUENCE, output("batch", 4), sequences),
    "a traced module": Case(
        lambda: torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(2, 3, 4)),
        SEQUENCE,
        output("batch", "src", 4),
        sequences,
    ),
    "values in a range": Case(
        Logarithm, {"x": ("float32", ["batch", 4], [0.5, 9.0])}, output("batch", 4), lambda: [(torch.rand(3, 4) + 0.5,)]
    ),
    "fp16": Case(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh()).half(),
        {"x": ("float16", ["batch", 4])},
        output("batch", 8, dtype="float16"),
        lambda: [(torch.randn(b, 4).half(),) for b in (1, 9)],
    ),
    "a dtype of torch": Case(
        lambda: nn.Linear(4, 2),
        {"x": (torch.float32, ["batch", 4])},
        output("batch", 2),
        lambda: [(torch.randn(3, 4),)],
    ),
    "examples of the user": Case(
        lambda: Packed(nn.GRU(4, 6, batch_first=True), is_sorted=True),
        {"x": SEQUENCE["x"], "lengths": ("int64", ["batch"])},
        {"output": ("float32", ["batch", "src", 6]), "last": ("float32", [1, "batch", 6])},
        lambda: with_lengths(order=True),
        options={
            "examples": [
                {"x": x(3, 5), "lengths": torch.tensor([5, 2, 1])},
                {"x": x(2, 9), "lengths": torch.tensor([9, 2])},
                {"x": x(1, 1), "lengths": torch.tensor([1])},
            ]
        },
    ),
}
