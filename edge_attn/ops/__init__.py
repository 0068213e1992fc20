"""The ops of the domain `edge_attn`, version 1: one op a file, each with its float64 oracle and its ONNX function body.

Call rules, so that one ONNX file runs in ONNX Runtime and in TensorRT 10.3 to 11: Op names are unique over all domains.
Every call has all inputs, names all outputs and has the attributes `plugin_namespace` and `plugin_version`. Bodies use
standard ops of opset 18.
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
    """One op: its ONNX schema, its oracle and its function body. The torch implementation is in models/layers."""

    name: str
    inputs: dict[str, str]
    """Name and type of each input: T is the float type of the op, others are ONNX type strings."""
    outputs: tuple[str, ...]
    """Names of the outputs, all of type T."""
    oracle: Callable[..., tuple[np.ndarray, ...]]
    """The equation in float64 numpy; takes inputs by position and attributes by keyword."""
    body: str
    """Statements of the ONNX function, as text."""
    attributes: dict[str, Any]
    """Name and an example value of each attribute; every call has all of them."""
    paper: str

    def function_text(self) -> str:
        """Return the function in ONNX's text form."""
        attributes = f" <{', '.join(self.attributes)}>" if self.attributes else ""
        return (
            f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>\n'
            f"{self.name}{attributes} ({', '.join(self.inputs)}) => ({', '.join(self.outputs)})\n{{\n{self.body}\n}}"
        )


def masked_softmax(energy: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis where `mask` is True, in float64; zeros for a row with no key."""
    energy, mask = np.broadcast_arrays(np.asarray(energy, np.float64), mask)
    top = np.max(np.where(mask, energy, -np.inf), axis=-1, keepdims=True)
    powers = np.where(mask, np.exp(np.where(mask, energy - np.where(np.isfinite(top), top, 0.0), 0.0)), 0.0)
    total = powers.sum(-1, keepdims=True)
    weights: np.ndarray = powers / np.where(total == 0.0, 1.0, total)
    return weights


def energy_body(vector: str) -> str:
    """Return statements from hidden (..., attn) and `vector` (attn) to energy (...), their product.

    The vector becomes a column, because a product of matrices is much faster.
    """
    return f"""  column_axes = Constant <value_ints = [1]> ()
  column = Unsqueeze ({vector}, column_axes)
  energy_column = MatMul (hidden, column)
  last = Constant <value_ints = [-1]> ()
  energy = Squeeze (energy_column, last)
"""


def softmax_body(output: str) -> str:
    """Return statements from energy and keep (bool) to `output`: softmax over the last axis where keep, else 0."""
    return f"""
  keep_int = Cast <to = 6> (keep)
  last_axis = Constant <value_ints = [-1]> ()
  has_key_int = ReduceMax <keepdims = 1> (keep_int, last_axis)
  has_key = Cast <to = 9> (has_key_int)
  no_key = Not (has_key)
  allowed = Or (keep, no_key)
  neg_inf_float = Constant <value_float = -inf> ()
  neg_inf = CastLike (neg_inf_float, energy)
  masked = Where (allowed, energy, neg_inf)
  softmax = Softmax <axis = -1> (masked)
  zero_float = Constant <value_float = 0.0> ()
  zero = CastLike (zero_float, energy)
  {output} = Where (keep, softmax, zero)
"""


SOFTMAX_AND_CONTEXT = f"""
  mask_axes = Constant <value_ints = [1]> ()
  keep = Unsqueeze (mask, mask_axes)
{softmax_body("weights")}
  context = MatMul (weights, values)
"""
"""Statements from energy (batch, tgt, src), mask (batch, src) and values to weights and context."""
