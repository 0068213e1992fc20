"""Sizes of the dynamic axes at which a graph is compared with torch, and inputs of these sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edge_attn.errors import ExportError
from edge_attn.spec import Axis, GraphSpec, InputSpec, TensorSpec

BATCHES = (1, 3, 32)
LENGTHS = (1, 2, 7, 50)
LARGEST = 1024
"""Largest described maximum at which a graph is compared."""


def axes(spec: GraphSpec) -> list[str]:
    """Return the dynamic axes of the inputs, in order."""
    return list(dict.fromkeys(axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)))


def traced_sizes(spec: GraphSpec, described: Mapping[str, Axis] | None = None) -> dict[str, int]:
    """Return the sizes at which a module is traced: distinct and above one, `src` longer than the others."""
    sizes = {axis: 2 + i for i, axis in enumerate(axes(spec))}
    sizes.update({"src": 7} if "src" in sizes else {})
    return {axis: (described or {}).get(axis, Axis()).fit(size) for axis, size in sizes.items()}


def shapes(spec: GraphSpec, described: Mapping[str, Axis] | None = None) -> Iterator[dict[str, int]]:
    """Yield the sizes at which a graph is compared: each axis small and large, in any combination of two.

    An axis `batch` takes BATCHES, every other one LENGTHS, moved into its described sizes, and its described maximum.

    Args:
        spec: the graph.
        described: sizes of axes, where they are described.
    """
    names = axes(spec)
    ladders = {axis: ladder(axis, (described or {}).get(axis, Axis())) for axis in names}
    batch = ladders.pop("batch", ())
    others = sorted(ladders, key=lambda axis: axis != "src")
    for b in range(len(batch) or len(BATCHES)):
        for s in range(max((len(ladders[axis]) for axis in others), default=1)):
            sizes = {}
            for i, axis in enumerate(others):
                steps = ladders[axis]
                if batch and batch[b] > 8 and i:  # two large axes at most
                    steps = steps[:-1] or steps
                sizes[axis] = steps[(s + i * (b + 1)) % len(steps)]
            yield {axis: batch[b] if axis == "batch" else sizes[axis] for axis in names}


def ladder(axis: str, sizes: Axis) -> tuple[int, ...]:
    """Return the sizes of one axis at which a graph is compared, ascending."""
    steps = [sizes.fit(size + sizes.minimum - 1) for size in (BATCHES if axis == "batch" else LENGTHS)]
    if sizes.maximum is not None and sizes.maximum <= LARGEST:
        steps.append(sizes.fit(sizes.maximum))
    return tuple(sorted(set(steps)))


def example_inputs(spec: GraphSpec, sizes: Mapping[str, int], seed: int = 0) -> list[np.ndarray]:
    """Return random inputs that fit `spec` at the `sizes` of its axes; integers without a range are 0 to 3."""
    random = np.random.default_rng(seed)
    return [_values(tensor, sizes, random) for tensor in spec.inputs]


def sizes_of(spec: GraphSpec, inputs: Sequence[np.ndarray]) -> dict[str, int]:
    """Return the sizes of the axes of `inputs`.

    Raises:
        ExportError: an input has another dtype or shape than its description.
    """
    sizes: dict[str, int] = {}
    for tensor, value in zip(spec.inputs, inputs, strict=True):
        expected = [
            sizes.setdefault(axis, size) if isinstance(axis, str) else axis
            for axis, size in zip(tensor.shape, value.shape, strict=False)
        ]
        if value.dtype.name != tensor.dtype or value.ndim != len(tensor.shape) or expected != list(value.shape):
            raise ExportError(f"the example of {tensor.name} is {value.dtype.name} {value.shape}, expected {tensor}")
    return sizes


def _values(tensor: TensorSpec, sizes: Mapping[str, int], random: np.random.Generator) -> np.ndarray:
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
    if tensor.dtype == "bool":
        values = random.random(shape) < 0.7
        some = getattr(tensor, "some", "")
        return _with_some(values, tensor.shape.index(some), random) if some else values
    if tensor.dtype.startswith(("int", "uint")):
        low, high = (_bound(end, sizes) for end in tensor.values or (0, 3))
        values = random.integers(low, high + 1, shape).astype(tensor.dtype)
    elif tensor.values:
        values = random.uniform(tensor.values[0], tensor.values[1], shape).astype(tensor.dtype)
    else:
        values = random.standard_normal(shape).astype(tensor.dtype)
    order = tensor.order if isinstance(tensor, InputSpec) else ""
    if order:
        values = np.sort(values, 0)
    return np.ascontiguousarray(values[::-1]) if order == "descending" else values


def _with_some(mask: np.ndarray, axis: int, random: np.random.Generator) -> np.ndarray:
    """Set one random value along `axis` to True."""
    shape = [*mask.shape[:axis], 1, *mask.shape[axis + 1 :]]
    if mask.shape[axis]:
        np.put_along_axis(mask, random.integers(0, mask.shape[axis], shape), True, axis)
    return mask


def _bound(end: int | str, sizes: Mapping[str, int]) -> int:
    """Return an end of a range as a number; a string is an axis, or `axis-1`."""
    if isinstance(end, int):
        return end
    axis, _, offset = end.partition("-")
    return sizes[axis] - int(offset or 0)
