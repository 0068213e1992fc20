"""Optimization profiles of an engine: one for each bucket of batch size and source length.

A request runs in the smallest bucket that covers it, so that a short sentence does not take the time of the longest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from edge_attn.config.validation import at_least
from edge_attn.errors import BundleError, ConfigError, TooLargeError
from edge_attn.spec import GraphSpec, TensorSpec

Range: TypeAlias = tuple[int, int, int]
"""TensorRT's min, opt and max size of an axis."""
Shape: TypeAlias = tuple[int, ...]
MAX_AXIS = 2**31 - 1
"""Maximum size of an axis, a signed 32-bit number in TensorRT."""


def at_most(name: str, value: int, limit: int) -> None:
    if value > limit:
        raise ConfigError(f"{name} must be at most {limit}, got {value}")


def shape_of(tensor: TensorSpec, axes: Mapping[str, int]) -> Shape:
    """Return the shape of a tensor for the sizes of its named axes."""
    return tuple([axes[axis] if isinstance(axis, str) else axis for axis in tensor.shape])


@dataclass(frozen=True)
class Profile:
    """The range of each axis."""

    axes: Mapping[str, Range]

    def shapes(self, spec: GraphSpec) -> dict[str, tuple[Shape, Shape, Shape]]:
        """Return the min, opt and max shape of each input.

        Raises:
            BundleError: an input has an axis without a range.
        """
        shapes: dict[str, tuple[Shape, Shape, Shape]] = {}
        for tensor in spec.inputs:
            for axis in tensor.shape:
                if isinstance(axis, str) and axis not in self.axes:
                    raise BundleError(
                        f"{spec.file}: the axis {axis!r} of {tensor} has no range; known: {', '.join(self.axes)}"
                    )
            min_shape, opt_shape, max_shape = (
                shape_of(tensor, {axis: sizes[which] for axis, sizes in self.axes.items()}) for which in range(3)
            )
            shapes[tensor.name] = (min_shape, opt_shape, max_shape)
        return shapes

    def __str__(self) -> str:
        return ", ".join(
            f"{axis} {max_size}" if min_size == max_size else f"{axis} {min_size}-{max_size} ({opt_size})"
            for axis, (min_size, opt_size, max_size) in self.axes.items()
        )


@dataclass(frozen=True)
class Bucket:
    """The largest request of one profile."""

    index: int
    """Index of the profile in every engine."""
    batch: int
    src: int
    beam: int

    def shape(self, tensor: TensorSpec) -> Shape:
        """Return the largest shape of a tensor.

        Raises:
            BundleError: the tensor has an axis without a bucket.
        """
        axes = {"batch": self.batch, "src": self.src, "beam": self.beam, "previous_beam": self.beam}
        if unknown := [axis for axis in tensor.shape if isinstance(axis, str) and axis not in axes]:
            raise BundleError(f"the axis {unknown[0]!r} of {tensor} has no bucket; known: {', '.join(axes)}")
        return shape_of(tensor, axes)


@dataclass(frozen=True)
class Buckets:
    """The sizes that engines are built for. The defaults suit an Orin Nano."""

    batch: tuple[int, ...] = (1, 8)
    """Batch sizes."""
    src: tuple[int, ...] = (16, 48, 100)
    """Source lengths in tokens. Longer ones than the bundle's maximum are replaced by it."""
    beam: int = 5
    """Maximum beam width."""

    def __post_init__(self) -> None:
        for name, sizes in (("batch", self.batch), ("src", self.src)):
            if not sizes or list(sizes) != sorted(set(sizes)):
                raise ConfigError(f"{name} must be increasing sizes, got {list(sizes)}")
            at_least(name, sizes[0], 1)
            at_most(name, sizes[-1], MAX_AXIS)
        at_least("beam", self.beam, 1)
        at_most("beam", self.beam, MAX_AXIS)

    def up_to(self, max_source: int) -> Buckets:
        """Return these buckets for sources of up to `max_source` tokens."""
        return Buckets(self.batch, (*(size for size in self.src if size < max_source), max_source), self.beam)

    def all(self) -> list[Bucket]:
        """Return every bucket, ordered by source length, then by batch size."""
        sizes = [(batch, src) for src in self.src for batch in self.batch]
        return [Bucket(index, batch, src, self.beam) for index, (batch, src) in enumerate(sizes)]

    def max_bytes(self, tensor: TensorSpec) -> int:
        """Return the size of a tensor in the bucket in which it is largest.

        Raises:
            BundleError: the tensor has an axis without a bucket.
        """
        return max(math.prod(bucket.shape(tensor)) for bucket in self.all()) * np.dtype(tensor.dtype).itemsize

    def profiles(self, spec: GraphSpec, max_source: int) -> list[Profile]:
        """Return one profile for each bucket, with the axes of the graph.

        Raises:
            BundleError: an input of the graph has an axis without a bucket.
        """
        axes = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
        profiles = []
        for bucket in self.up_to(max_source).all():
            ranges = dict.fromkeys(("beam", "previous_beam"), (1, bucket.beam, bucket.beam))
            ranges |= {"batch": (bucket.batch,) * 3, "src": (bucket.src,) * 3}  # every request is padded to these
            profile = Profile({axis: sizes for axis, sizes in ranges.items() if axis in axes})
            profile.shapes(spec)  # raises for an unknown axis
            profiles.append(profile)
        return profiles

    def pick(self, batch: int, src: int, beam: int) -> Bucket:
        """Return the smallest bucket of `up_to` that covers a request.

        Raises:
            TooLargeError: no bucket covers it. The text contains the largest.
        """
        for bucket in self.all():
            if batch <= bucket.batch and src <= bucket.src and beam <= bucket.beam:
                return bucket
        raise TooLargeError(
            f"the engine was built for up to {self.batch[-1]} sentences of up to {self.src[-1]} tokens with a beam of "
            f"up to {self.beam}, got {batch} of {src} with a beam of {beam}; request less, or build it for more "
            f"(batch, src and beam in the table buckets)"
        )
