"""The ops of the domain `edge_attn`, version 1: one op a file, each with its float64 oracle and its ONNX function body.

Call rules (one ONNX file serves ONNX Runtime and TensorRT 10.3 to 11): names are unique over all domains, every call
gives all inputs, names all outputs and carries `plugin_namespace` and `plugin_version`; bodies use opset 18 primitives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

DOMAIN = "edge_attn"
DOMAIN_VERSION = 1
OPSET = 18


@dataclass(frozen=True)
class Op:
    """One op: its name, its writings but torch's, and the types that its ONNX schema declares."""

    name: str
    inputs: dict[str, str]
    """Name and type: T is the float type of the op, others are ONNX type strings."""
    outputs: tuple[str, ...]
    """Names; all of type T."""
    oracle: Callable[..., tuple[np.ndarray, ...]]
    """The equation in float64 numpy: positional inputs, attributes by keyword."""
    body: str
    """The statements of the ONNX function, as text."""
    attributes: dict[str, Any]
    """Name and an example of each attribute; every call gives every one."""
    paper: str

    def function_text(self) -> str:
        """The whole function in ONNX's text form."""
        attributes = f" <{', '.join(self.attributes)}>" if self.attributes else ""
        return (
            f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>\n'
            f"{self.name}{attributes} ({', '.join(self.inputs)}) => ({', '.join(self.outputs)})\n{{\n{self.body}\n}}"
        )


def masked_softmax(energy: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Softmax over the last axis where `mask` is True, in float64; a row with no key gives zeros."""
    energy, mask = np.broadcast_arrays(np.asarray(energy, np.float64), mask)
    top = np.max(np.where(mask, energy, -np.inf), axis=-1, keepdims=True)
    powers = np.where(mask, np.exp(np.where(mask, energy - np.where(np.isfinite(top), top, 0.0), 0.0)), 0.0)
    total = powers.sum(-1, keepdims=True)
    weights: np.ndarray = powers / np.where(total == 0.0, 1.0, total)
    return weights


def energy_from(vector: str) -> str:
    """Statements: energy, the product of hidden (..., attn) with `vector` (attn), which as a column is much faster."""
    return f"""  column_axes = Constant <value_ints = [1]> ()
  column = Unsqueeze ({vector}, column_axes)
  energy_column = MatMul (hidden, column)
  last = Constant <value_ints = [-1]> ()
  energy = Squeeze (energy_column, last)
"""


KEPT_SOFTMAX = """
  keep_int = Cast <to = 6> (keep)
  last_axis = Constant <value_ints = [-1]> ()
  count = ReduceMax <keepdims = 1> (keep_int, last_axis)
  some_key = Cast <to = 9> (count)
  no_key = Not (some_key)
  allowed = Or (keep, no_key)
  minus_infinity = Constant <value_float = -inf> ()
  never = CastLike (minus_infinity, energy)
  masked = Where (allowed, energy, never)
  softmax = Softmax <axis = -1> (masked)
  zero = Constant <value_float = 0.0> ()
  nothing = CastLike (zero, energy)
  weights = Where (keep, softmax, nothing)
"""
"""energy, keep (bool, broadcasts to energy) -> weights: softmax over the last axis where `keep` is True, else 0."""

MASKED_SOFTMAX = f"""
  mask_axes = Constant <value_ints = [1]> ()
  keep = Unsqueeze (mask, mask_axes)
{KEPT_SOFTMAX}
  context = MatMul (weights, values)
"""
"""energy (batch, tgt, src), mask (batch, src), values -> weights, context: the end of every soft attention's body."""
