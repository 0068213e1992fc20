"""The torch implementation of each op of the domain `edge_attn`: one formula, differentiable, one node when exported.

Each formula is plain torch. If gradients are recorded, it runs directly and autograd differentiates it. If not, it
runs as `torch.ops.edge_attn.<name>`, which `torch.export` keeps as a single node. Equations, papers and shapes:
edge_attn/ops, one op a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edge_attn.errors import InputError
from edge_attn.ops import Op, additive, dot
from edge_attn.ops import gru as gru_op
from edge_attn.ops import lstm as lstm_op

_LIBRARY = torch.library.Library("edge_attn", "DEF")
_TYPES = {float: "float", int: "int", str: "str"}
REGISTERED: dict[str, Any] = {}
"""Op name to the overload of torch.ops.edge_attn that the export replaces."""
FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""Op name to the function that `register` returned."""


def register(op: Op, formula: Callable[..., Any], fake: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return the op as a torch function that takes its inputs, then its attributes, by position.

    The function raises InputError for a mask of the wrong type or shape. `fake` returns tensors of the right shapes;
    None if `formula` itself runs on tensors without data.
    """
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", op.name).lower()
    parameters = [f"Tensor {key}" for key in op.inputs]
    parameters += [f"{_TYPES[type(value)]} {key}" for key, value in op.attributes.items()]
    returns = ", ".join(["Tensor"] * len(op.outputs))
    _LIBRARY.define(f"{name}({', '.join(parameters)}) -> ({returns})")

    def differentiable(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return formula(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.edge_attn, name)(*args)

    _LIBRARY.impl(name, formula, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, differentiable, "Autograd")
    torch.library.register_fake(f"edge_attn::{name}", fake or formula, lib=_LIBRARY)
    REGISTERED[op.name] = getattr(torch.ops.edge_attn, name).default

    def function(*args: Any) -> Any:
        if "mask" in op.inputs:
            _check_mask(op.name, dict(zip(op.inputs, args, strict=False)))
        return getattr(torch.ops.edge_attn, name)(*args)

    FUNCTIONS[op.name] = function
    return function


def _check_mask(name: str, inputs: dict[str, Tensor]) -> None:
    """Check that the mask is bool of shape (batch, src), or (batch, tgt or 1, src) for an op over energies."""
    mask, (batch, src) = inputs["mask"], inputs["values"].shape[:2]
    if mask.dtype != torch.bool:
        raise InputError(f"{name}: the mask must be of type bool, True = a real token, got {mask.dtype}")
    queries = (1, inputs["energy"].shape[1]) if "energy" in inputs else ()
    fits = mask.ndim == (3 if queries else 2) and mask.shape[0] == batch and mask.shape[-1] == src
    if not fits or (queries and mask.shape[1] not in queries):
        shape = f"(batch, {'tgt or 1, ' if queries else ''}src)"
        raise InputError(
            f"{name}: the mask must have shape {shape}, here {(batch, *queries[1:], src)}, got {tuple(mask.shape)}"
        )


def masked_softmax(energy: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over the last axis where `mask` is True; zeros, in the gradient too, for a row with no key."""
    no_key = ~mask.any(-1, keepdim=True)
    return energy.masked_fill(~(mask | no_key), float("-inf")).softmax(-1).masked_fill(~mask, 0.0)


def _attend(energy: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    weights = masked_softmax(energy, mask[:, None, :])
    return weights @ values, weights


def _additive(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return _attend(torch.tanh(query[:, :, None, :] + keys[:, None, :, :]) @ v, values, mask)


def _dot(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _attend(scale * (query @ keys.transpose(1, 2)), values, mask)


additive_attention = register(additive.OP, _additive)
dot_attention = register(dot.OP, _dot)


def _torch_order(weight: Tensor, gates: tuple[int, ...]) -> Tensor:
    """Return the rows of ONNX's gate order (GRU z r h, LSTM i o f c) in torch's order (GRU r z n, LSTM i f g o)."""
    blocks = weight.chunk(len(gates))
    return torch.cat([blocks[g] for g in gates])


def _run_packed(
    kernel: Callable[..., Any], gates: tuple[int, ...], states: int, args: tuple[Tensor, ...]
) -> list[Tensor]:
    """Run torch's `kernel` on packed sequences; `gates` maps torch's gate order to ONNX's."""
    x, lengths, w, r, b = args
    directions, hidden = w.shape[0], r.shape[2]
    batch, time = x.shape[:2]
    weights = []  # torch's flat list: w, r and both biases of each direction
    for d in range(directions):
        bias_w, bias_r = b[d].chunk(2)
        weights += [_torch_order(part, gates) for part in (w[d], r[d], bias_w, bias_r)]
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
    )
    assert packed.sorted_indices is not None
    assert packed.unsorted_indices is not None
    zeros = x.new_zeros(directions, batch, hidden)
    initial = zeros if states == 1 else (zeros, zeros)
    data, *finals = kernel(packed.data, packed.batch_sizes, initial, weights, True, 1, 0.0, False, directions == 2)
    output, _ = torch.nn.utils.rnn.pad_packed_sequence(
        torch.nn.utils.rnn.PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices),
        batch_first=True,
        total_length=time,
    )
    nonempty = (lengths > 0)[:, None]
    # each of finals: (directions, batch, hidden) in sorted order -> (batch, directions * hidden)
    finals = [final[:, packed.unsorted_indices].transpose(0, 1).reshape(batch, -1) for final in finals]
    return [output.masked_fill(~nonempty[:, :, None], 0.0), *(final.masked_fill(~nonempty, 0.0) for final in finals)]


def _gru(*args: Any) -> tuple[Tensor, ...]:
    return tuple(_run_packed(torch._VF.gru, (1, 0, 2), 1, args[:5]))


def _lstm(*args: Any) -> tuple[Tensor, ...]:
    return tuple(_run_packed(torch._VF.lstm, (0, 2, 3, 1), 2, args[:5]))


def _recurrent_fake(states: int) -> Callable[..., tuple[Tensor, ...]]:
    def fake(x: Tensor, lengths: Tensor, w: Tensor, r: Tensor, b: Tensor, *_: Any) -> tuple[Tensor, ...]:
        width = w.shape[0] * r.shape[2]
        finals = (x.new_empty(x.shape[0], width) for _ in range(states))
        return (x.new_empty(x.shape[0], x.shape[1], width), *finals)

    return fake


def _with_attributes(op: Callable[..., Any]) -> Callable[..., Any]:
    """Return the op with its attributes from the shapes of its weights."""

    def call(x: Tensor, lengths: Tensor, w: Tensor, r: Tensor, b: Tensor) -> Any:
        return op(x, lengths, w, r, b, r.shape[2], {1: "forward", 2: "bidirectional"}[w.shape[0]])

    return call


gru = _with_attributes(register(gru_op.OP, _gru, _recurrent_fake(1)))
lstm = _with_attributes(register(lstm_op.OP, _lstm, _recurrent_fake(2)))
