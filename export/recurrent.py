"""Recurrent layers of torch and packed sequences, as nodes of ONNX for any length.

While torch.export runs a module, `torch.gru`, `torch.lstm` and `torch.rnn_*` are replaced by one op per layer and
direction, which becomes one GRU, LSTM or RNN node. Torch's own rule unrolls the layer over the traced length.

A packed sequence stays padded: its data are (src * batch, size), and `BatchSizes` stands for its batch sizes.
An LSTM with a projection P is an LSTM without one, whose recurrent weights are W_hh P, as h_t = P (o * tanh(c_t)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import onnxscript
import torch
from torch import Tensor, nn

_LIBRARY = torch.library.Library("edge_attn_export", "DEF")
_LIBRARY.define(
    "recurrent(Tensor x, Tensor w, Tensor r, Tensor b, Tensor? lengths, Tensor h, Tensor? c, str kind, bool reverse)"
    " -> (Tensor, Tensor, Tensor)"
)
GATES = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}
"""Gates of torch in the order of ONNX."""


def _fake(x: Tensor, w: Tensor, r: Tensor, b: Tensor, lengths: Tensor | None, h: Tensor, *_: Any) -> tuple[Tensor, ...]:
    length, batch, hidden = x.shape[0], x.shape[1], r.shape[2]
    return x.new_empty(length, 1, batch, hidden), *(x.new_empty(1, batch, hidden) for _ in range(2))


torch.library.register_fake("edge_attn_export::recurrent", _fake, lib=_LIBRARY)


def _translate(x: Any, w: Any, r: Any, b: Any, lengths: Any, h: Any, c: Any, kind: str, reverse: bool) -> Any:
    opset = onnxscript.values.Opset("", 18)
    settings: dict[str, Any] = {"hidden_size": r.shape[2], "direction": "reverse" if reverse else "forward"}
    if kind == "lstm":
        return opset.LSTM(x, w, r, b, lengths, h, c, **settings)
    if kind == "gru":
        output, last = opset.GRU(x, w, r, b, lengths, h, linear_before_reset=1, **settings)
    else:
        activation = "Relu" if kind == "rnn_relu" else "Tanh"
        output, last = opset.RNN(x, w, r, b, lengths, h, activations=[activation], **settings)
    return output, last, last


def translations() -> dict[Any, Callable[..., Any]]:
    """Return the translation of the op above, for `torch.onnx.export`."""
    return {torch.ops.edge_attn_export.recurrent.default: _translate}


class BatchSizes:
    """Batch sizes of a packed sequence whose data stay padded: its lengths, in descending order, and its size."""

    def __init__(self, lengths: Tensor, length: int, batch: int) -> None:
        self.lengths, self.length, self.batch = lengths, length, batch
        self.device = torch.device("cpu")

    def __getitem__(self, step: int) -> int:
        if step != 0:
            raise NotImplementedError("batch sizes of a packed sequence after the first step")
        return self.batch

    def size(self, _: int) -> Longest:
        """Return the length of the longest sequence, which only a run of the graph knows."""
        return Longest()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{getattr(function, '__name__', function)} of a packed sequence's batch sizes")


class Longest(int):
    """Length of the longest sequence; no total length is below it."""

    def __gt__(self, _: object) -> bool:
        return False


def pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, BatchSizes]:
    """Replace `torch._pack_padded_sequence`: the data stay padded, time first."""
    x = x.transpose(0, 1) if batch_first else x
    return x.reshape(-1, *x.shape[2:]), BatchSizes(lengths, x.shape[0], x.shape[1])


def unpack(
    data: Tensor, sizes: BatchSizes, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """Replace `torch._pad_packed_sequence`."""
    x = data.reshape(sizes.length, sizes.batch, *data.shape[1:])  # (src, batch, ...)
    real = torch.arange(sizes.length)[:, None] < sizes.lengths  # (src, batch)
    x = torch.where(real.reshape(*real.shape, *[1] * (x.dim() - 2)), x, padding_value)
    if isinstance(total_length, Longest):
        longest = sizes.lengths.max().item()
        torch._check(longest >= 1)
        torch._check(longest <= sizes.length)
        x = x[:longest]
    return (x.transpose(0, 1) if batch_first else x), sizes.lengths


def layers(kind: str) -> Callable[..., Any]:
    """Return the replacement of `torch.gru`, `torch.lstm`, `torch.rnn_tanh` or `torch.rnn_relu`."""

    def run(x: Tensor, *arguments: Any) -> Any:
        if isinstance(arguments[0], BatchSizes):
            sizes, state, weights, bias, depth, dropout, training, both = arguments
            padded = x.reshape(sizes.length, sizes.batch, x.shape[1])
            output, *last = _stack(kind, padded, state, weights, bias, depth, both, sizes.lengths.to(torch.int32))
            output = output.reshape(-1, output.shape[2])
        else:
            state, weights, bias, depth, dropout, training, both, batch_first = arguments
            output, *last = _stack(kind, x.transpose(0, 1) if batch_first else x, state, weights, bias, depth, both)
            output = output.transpose(0, 1) if batch_first else output
        if dropout and training:
            raise NotImplementedError("dropout between recurrent layers")
        return (output, *last)

    return run


def _stack(
    kind: str,
    x: Tensor,
    state: Any,
    weights: Sequence[Tensor],
    bias: bool,
    depth: int,
    both: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run layers over x (src, batch, size); return the output and the last states (layers * directions, batch, size).

    Args:
        kind: key of GATES.
        x: input, time first.
        state: initial state (layers * directions, batch, size); for an LSTM, a pair with the cell state.
        weights: weights of torch for each layer and direction: of the input, recurrent, two biases, the projection.
        bias: biases are among the weights.
        depth: number of layers.
        both: read in both directions.
        lengths: length of each row, int32; None if every row is complete.
    """
    states = tuple(state) if kind == "lstm" else (state,)
    projected = kind == "lstm" and len(weights) % (4 if bias else 2) != 0
    projected = projected or len(weights) > depth * (1 + both) * (4 if bias else 2)
    size = len(weights) // (depth * (1 + both))
    last: list[tuple[Tensor, ...]] = []
    for layer in range(depth):
        outputs = []
        for direction in range(1 + both):
            index = layer * (1 + both) + direction
            own = list(weights[index * size : (index + 1) * size])
            projection = own.pop() if projected else None
            output, *ends = _direction(
                kind, x, [value[index] for value in states], own, projection, bool(direction), lengths
            )
            outputs.append(output)
            last.append(tuple(ends))
        x = torch.cat(outputs, -1) if both else outputs[0]
    return (x, *(torch.stack(values) for values in zip(*last, strict=True)))


def _direction(
    kind: str,
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    projection: Tensor | None,
    reverse: bool,
    lengths: Tensor | None,
) -> tuple[Tensor, ...]:
    w, r, *biases = weights
    h, *cell = state  # (batch, size) each
    if projection is not None:  # h_0 enters through the input of the first step: W_hh is of the projected state
        first: Any = 0
        if reverse:
            first = x.shape[0] - 1 if lengths is None else lengths - 1
        here = torch.arange(x.shape[0])[:, None] == first  # (src, batch or 1)
        x = torch.cat([x, torch.where(here[..., None], h, 0.0)], -1)
        w, r = torch.cat([w, r], 1), r @ projection
        h = torch.zeros_like(cell[0])
    w, r, *biases = (_onnx_order(kind, value) for value in (w, r, *biases))
    b = torch.cat(biases) if biases else w.new_zeros(2 * w.shape[0])
    output, *ends = torch.ops.edge_attn_export.recurrent(
        x, w[None], r[None], b[None], lengths, h[None], cell[0][None] if cell else None, kind, reverse
    )
    output, ends = output.squeeze(1), [value.squeeze(0) for value in ends]
    if projection is not None:
        output, ends[0] = output @ projection.T, ends[0] @ projection.T
    return (output, *ends[: len(state)])


def _onnx_order(kind: str, value: Tensor) -> Tensor:
    gates = value.chunk(len(GATES[kind]))
    return torch.cat([gates[i] for i in GATES[kind]])


@contextmanager
def unchecked() -> Iterator[None]:
    """Leave out the checks of arguments in torch's layers: they take sizes as numbers, which fixes an axis."""

    def accept(*_: Any) -> None:
        """Accept any arguments: the module has run on them before."""

    with (
        mock.patch.object(nn.RNNBase, "check_forward_args", accept),
        mock.patch.object(nn.LSTM, "check_forward_args", accept),
    ):
        yield
