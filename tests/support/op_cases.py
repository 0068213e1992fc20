"""Calls of each op for the conformance tests: a row of CASES is an op with shapes and attributes."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from edge_attn.registry import OPS, resolve

Arrays = tuple[np.ndarray, ...]

# ---- cases: an op with its shapes and attributes


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of an op; a string in a shape is a dynamic axis."""

    op: str
    shapes: dict[str, tuple[Any, ...]]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    keys_are_values: bool = False
    weights: float = 1.0
    """Scale of the random w, r and b; a recurrent op has the scale of torch's initialization."""


def attention(attn: int, value: int) -> dict[str, tuple[Any, ...]]:
    return {
        "query": ("batch", "tgt", attn),
        "keys": ("batch", "src", attn),
        "values": ("batch", "src", value),
        "mask": ("batch", "src"),
    }


def energies(op: str, queries: Any = 1, **attributes: Any) -> Case:
    """Return the case of an op over energies; `queries` is 1, or "tgt" for a separate mask for each query."""
    position = {"position": ("batch", "tgt", 1)} if "window" in attributes else {}
    shapes = {"energy": ("batch", "tgt", "src"), **position, "values": ("batch", "src", 5)}
    return Case(op, {**shapes, "mask": ("batch", queries, "src")}, attributes)


def recurrent(op: str, gates: int, direction: str, size: int = 5, hidden: int = 6) -> Case:
    directions = {"forward": 1, "bidirectional": 2}[direction]
    shapes: dict[str, tuple[Any, ...]] = {
        "x": ("batch", "src", size),
        "lengths": ("batch",),
        "w": (directions, gates * hidden, size),
        "r": (directions, gates * hidden, hidden),
        "b": (directions, 2 * gates * hidden),
    }
    return Case(op, shapes, {"hidden_size": hidden, "direction": direction}, weights=hidden**-0.5)


def intra(size: int = 5, hidden: int = 6, attn: int = 4) -> Case:
    rows = 4 * hidden + attn
    shapes = {"x": ("batch", "src", size), "lengths": ("batch",), "w": (rows, size), "r": (rows, hidden), "b": (rows,)}
    return Case("IntraAttention", {**shapes, "u": (attn, hidden), "v": (attn,)}, weights=hidden**-0.5)


SCALE = float(np.float32(1 / math.sqrt(6)))
"""A float32 number, because an ONNX attribute is one; all implementations and the oracle use it."""

ATTENTION = {
    "additive": Case("AdditiveAttention", {**attention(attn=6, value=5), "v": (6,)}),
    "dot": Case("DotAttention", attention(attn=6, value=6), {"scale": 1.0}, keys_are_values=True),
    "general": Case("DotAttention", attention(attn=6, value=5), {"scale": 1.0}),
    "scaled": Case("DotAttention", attention(attn=6, value=5), {"scale": SCALE}),
    "location": Case(
        "LocationAttention",
        {"query": ("batch", "tgt", 4), "w": (5, 4), "values": ("batch", "src", 5), "mask": ("batch", "src")},
    ),
    "pooling": Case(
        "AttentionPooling", {"values": ("batch", "src", 5), "mask": ("batch", "src"), "w": (6, 5), "b": (6,), "u": (6,)}
    ),
    "multi-head": Case("MultiHeadDotAttention", attention(attn=6, value=4), {"heads": 2, "scale": SCALE, "causal": 0}),
    "multi-head causal": Case(
        "MultiHeadDotAttention", attention(attn=6, value=3), {"heads": 3, "scale": SCALE, "causal": 1}
    ),
}
ENERGIES = {
    "softmax": energies("SoftmaxAttention", penalty=0.0),
    "sparsemax": energies("SparsemaxAttention"),
    "sparsemax, mask per query": energies("SparsemaxAttention", "tgt"),
    "local-m": energies("LocalAttention", window=2, gaussian=0),
    "local-p": energies("LocalAttention", "tgt", window=3, gaussian=1),
    "local-m sparsemax": energies("SparseLocalAttention", window=1, gaussian=0),
    "local-p sparsemax": energies("SparseLocalAttention", window=6, gaussian=1),
    "hard": energies("HardAttention"),
    "hard, mask per query": energies("HardAttention", "tgt"),
}
PENALIZED = {"penalized": energies("SoftmaxAttention", "tgt", penalty=4.0)}
"""Cases whose rows with no key are not 0."""
RECURRENT = {
    "gru forward": recurrent("Gru", 3, "forward"),
    "gru bidirectional": recurrent("Gru", 3, "bidirectional"),
    "lstm forward": recurrent("Lstm", 4, "forward"),
    "lstm bidirectional": recurrent("Lstm", 4, "bidirectional"),
}
INTRA = {"intra": intra()}
CASES = ATTENTION | ENERGIES | PENALIZED | RECURRENT | INTRA

# ---- inputs

BATCHES = (1, 3, 32)
LENGTHS = (1, 2, 7, 50)
TGT = 3


def lengths_of(kind: str, batch: int, length: int, random: np.random.Generator) -> np.ndarray:
    """Return the number of real elements of each row. One row of `ragged` is full, every third of `some rows` empty."""
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
    """Return the mask of these lengths; with `one key` the key is at a random position."""
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
    arrays = {}
    for key, axes in case.shapes.items():
        shape = tuple(sizes.get(axis, axis) for axis in axes)
        size = case.weights if key in ("w", "r", "b") else 1.0
        arrays[key] = (size * random.standard_normal(shape)).astype(dtype)
    if "mask" in arrays:
        arrays["mask"] = mask_of(kind, lengths, length, random)
        if len(case.shapes["mask"]) == 3:
            arrays["mask"] = arrays["mask"][:, None, :]
            if case.shapes["mask"][1] == "tgt":  # each query masks every third key
                arrays["mask"] = arrays["mask"] & ((np.arange(length) + np.arange(TGT)[:, None]) % 3 != 0)
    if "position" in arrays:  # integers and halves, past both edges too
        arrays["position"] = random.integers(-4, 2 * length + 4, (batch, TGT, 1)).astype(dtype) / 2
    if "lengths" in arrays:
        arrays["lengths"] = lengths
    if case.keys_are_values:
        arrays["keys"] = arrays["values"]
    return arrays


def oracle(name: str, arrays: dict[str, np.ndarray]) -> Arrays:
    return resolve("op", OPS, CASES[name].op).oracle(*arrays.values(), **CASES[name].attributes)


@functools.cache
def expected(name: str, dtype: str, kind: str, batch: int, length: int) -> Arrays:
    return oracle(name, inputs(name, dtype, kind, batch, length))
