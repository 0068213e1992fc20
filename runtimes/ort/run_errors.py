"""Graphs that load and then do not run: errors of ONNX Runtime, and outputs that differ from the description."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_attn.errors import BundleError
from edge_attn.spec import GraphSpec, Value

NODE = re.compile(r"while running (\w+) node\. Name:'([^']*)' Status Message: (.*)", re.DOTALL)
SOURCE = re.compile(r"^\S*/onnxruntime\S*/(?:[^/\s]+)\.(?:cc|h|cpp):\d+ .*?\) (?=[A-Z])", re.DOTALL)
"""Place in the source of ONNX Runtime, with the signature of its function, before the reason."""


def run_error(where: str, error: Exception, seconds: float) -> BundleError:
    """Return the error of a graph that did not run, with the node that failed.

    Args:
        where: the bundle and the file of the graph.
        error: error of ONNX Runtime.
        seconds: time limit of a run.
    """
    text = str(error)
    failed = list(NODE.finditer(text))
    node = f"node {failed[0][2] or 'without a name'} ({failed[0][1]})" if failed else "the graph"
    reason = failed[0][3] if failed else text
    if "terminate flag" in reason:
        return BundleError(
            f"{where} does not run: {node} was stopped after {seconds:g} seconds; if the machine is only slow, "
            f"raise `max_run_seconds`"
        )
    if nested := NODE.search(reason):
        node, reason = f"{node}, in it node {nested[2] or 'without a name'} ({nested[1]})", nested[3]
    reason = SOURCE.sub("", reason.replace("[ONNXRuntimeError] : ", "").strip())
    if "Failed to allocate memory" in reason or "bad_alloc" in reason or isinstance(error, MemoryError):
        reason = f"the memory of this machine is too small: {reason}"
    return BundleError(f"{where} does not run: {node}: {reason}; export the bundle again")


class OutputShapes:
    """The described shapes of a graph's outputs. ONNX Runtime itself does not enforce them."""

    def __init__(self, where: str, spec: GraphSpec) -> None:
        """Prepare the comparison.

        Args:
            where: the bundle and the file of the graph, for messages.
            spec: the description.
        """
        self._where = where
        axes: dict[str, tuple[str, int]] = {}
        for tensor in spec.inputs:
            for i, axis in enumerate(tensor.shape):
                if isinstance(axis, str):
                    axes.setdefault(axis, (tensor.name, i))
        self._axes = [(axis, name, i) for axis, (name, i) in axes.items()]
        self._outputs = [(tensor.name, tensor.shape) for tensor in spec.outputs]

    def check(self, inputs: Mapping[str, Value], outputs: Mapping[str, Value]) -> None:
        """Compare the shapes of a run.

        Raises:
            BundleError: an output has another shape than the one described.
        """
        sizes: dict[Any, Any] = {axis: _shape(inputs[name])[i] for axis, name, i in self._axes}
        for name, described in self._outputs:
            actual = _shape(outputs[name])
            if actual == tuple(map(sizes.get, described, described)):
                continue
            expected = [sizes.get(axis, axis) for axis in described]  # an axis that no input has remains a name
            if len(actual) != len(expected) or any(
                isinstance(size, int) and size != other for size, other in zip(expected, actual, strict=True)
            ):
                raise BundleError(
                    f"{self._where} does not run as described: its output {name} has the shape {_text(actual)}, "
                    f"expected {_text(expected)}; export the bundle again"
                )


def _shape(value: Value) -> tuple[int, ...]:
    return value.shape if isinstance(value, np.ndarray) else tuple(value.shape())


def _text(shape: Sequence[object]) -> str:
    return f"({', '.join(map(str, shape))})"
