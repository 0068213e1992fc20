"""The ranges that an engine is built for: buckets of batch and source length, one optimisation profile each.

A request runs in the smallest bucket that covers it, so that a short sentence does not pay for the longest.
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
"""The least size of an axis, the one it is tuned for, and the largest."""
Shape: TypeAlias = tuple[int, ...]
LARGEST = 2**31 - 1
"""Size of an axis: TensorRT counts in signed numbers of 32 bits."""


def at_most(name: str, value: int, most: int) -> None:
    if value > most:
        raise ConfigError(f"{name} must be at most {most}, got {value}")


@dataclass(frozen=True)
class Profile:
    """A range for each axis."""

    axes: Mapping[str, Range]

    def shapes(self, spec: GraphSpec) -> dict[str, tuple[Shape, Shape, Shape]]:
        """For each input of the graph: its least shape, the one it is tuned for, its largest.

        Raises:
            BundleError: an input has an axis without a range.
        """
        made: dict[str, tuple[Shape, Shape, Shape]] = {}
        for tensor in spec.inputs:
            for axis in tensor.shape:
                if isinstance(axis, str) and axis not in self.axes:
                    raise BundleError(
                        f"{spec.file}: the axis {axis!r} of {tensor} has no range; known: {', '.join(self.axes)}"
                    )
            least, best, most = (
                tuple(self.axes[axis][which] if isinstance(axis, str) else axis for axis in tensor.shape)
                for which in range(3)
            )
            made[tensor.name] = (least, best, most)
        return made

    def __str__(self) -> str:
        return ", ".join(
            f"{axis} {most}" if least == most else f"{axis} {least}-{most} ({best})"
            for axis, (least, best, most) in self.axes.items()
        )


@dataclass(frozen=True)
class Bucket:
    """The largest request of one profile."""

    index: int
    """Of its profile, in every graph's engine."""
    batch: int
    src: int
    beam: int

    def shape(self, tensor: TensorSpec) -> Shape:
        """Return the shape of a tensor in the largest request.

        Raises:
            BundleError: an axis of the tensor has no bucket.
        """
        axes = {"batch": self.batch, "src": self.src, "beam": self.beam, "previous_beam": self.beam}
        if unknown := [axis for axis in tensor.shape if isinstance(axis, str) and axis not in axes]:
            raise BundleError(f"the axis {unknown[0]!r} of {tensor} has no bucket; known: {', '.join(axes)}")
        return tuple(axes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)


@dataclass(frozen=True)
class Buckets:
    """The sizes that engines are built for; the defaults suit an Orin Nano."""

    batch: tuple[int, ...] = (1, 8)
    """Sentences at a time."""
    src: tuple[int, ...] = (16, 48, 100)
    """Source tokens; what the bundle's longest source does not need is left out, and it is always covered."""
    beam: int = 5
    """The widest beam."""

    def __post_init__(self) -> None:
        for name, sizes in (("batch", self.batch), ("src", self.src)):
            if not sizes or list(sizes) != sorted(set(sizes)):
                raise ConfigError(f"{name} must be sizes that rise, got {list(sizes)}")
            at_least(name, sizes[0], 1)
            at_most(name, sizes[-1], LARGEST)
        at_least("beam", self.beam, 1)
        at_most("beam", self.beam, LARGEST)

    def up_to(self, max_source: int) -> Buckets:
        """The same for a bundle whose longest source has `max_source` tokens."""
        return Buckets(self.batch, (*(size for size in self.src if size < max_source), max_source), self.beam)

    def all(self) -> list[Bucket]:
        """Every bucket, the shortest sources first and the small batches before the large ones."""
        sizes = [(batch, src) for src in self.src for batch in self.batch]
        return [Bucket(index, batch, src, self.beam) for index, (batch, src) in enumerate(sizes)]

    def max_bytes(self, tensor: TensorSpec) -> int:
        """Return the size of a tensor in the bucket where it is largest.

        Raises:
            BundleError: an axis of the tensor has no bucket.
        """
        return max(math.prod(bucket.shape(tensor)) for bucket in self.all()) * np.dtype(tensor.dtype).itemsize

    def profiles(self, spec: GraphSpec, max_source: int) -> list[Profile]:
        """One profile a bucket, with the axes that the graph has.

        Raises:
            BundleError: an input of the graph has an axis that has no bucket.
        """
        has = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
        made = []
        for bucket in self.up_to(max_source).all():
            ranges = dict.fromkeys(("beam", "previous_beam"), (1, bucket.beam, bucket.beam))
            ranges |= {"batch": (bucket.batch,) * 3, "src": (bucket.src,) * 3}  # every request is padded to these
            profile = Profile({axis: sizes for axis, sizes in ranges.items() if axis in has})
            profile.shapes(spec)
            made.append(profile)
        return made

    def pick(self, batch: int, src: int, beam: int) -> Bucket:
        """The smallest bucket that covers a request; of the buckets that `up_to` gave.

        Raises:
            TooLargeError: none does; the sentence names the largest.
        """
        for bucket in self.all():
            if batch <= bucket.batch and src <= bucket.src and beam <= bucket.beam:
                return bucket
        raise TooLargeError(
            f"the engine was built for up to {self.batch[-1]} sentences of up to {self.src[-1]} tokens with a beam of "
            f"up to {self.beam}, got {batch} of {src} with a beam of {beam}; ask for less, or build it for more "
            f"(batch, src and beam in the table buckets)"
        )
