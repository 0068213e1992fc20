"""Probes: short inputs that look up every row of every table, and seeded projections of what they yield.

Real sentences read a small part of a vocabulary. A fault in any other row shows only where that row is looked up, so
golden data also contains inputs that hold each entry at least once. Of each output only PROJECTIONS numbers are
recorded: sums with signs, in which a change of one value shows for certain, and in which independent errors of one size
stay that size.

The signs are computed from integers alone, so they are the same for every version of numpy.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

PROJECTIONS = 4
"""Projections of each output of a probe. One would do, had it not a chance of being near zero."""
BATCHES = tuple(range(1, 65))
"""Batch sizes that probes run in, so that a graph that is wrong for one of them is seen."""
DENSE_LENGTHS, SPARSE_LENGTHS = 128, 32
"""Every source length is probed up to the first number, and the second number of lengths above it."""


def shuffled(count: int, seed: int) -> np.ndarray:
    """Return the numbers 0 to count - 1 in a seeded order, by splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed << 32)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(state ^ (state >> np.uint64(31)), kind="stable")


@functools.lru_cache(maxsize=64)
def signs(count: int, seed: int = 0) -> np.ndarray:
    """Return a matrix (count, PROJECTIONS) with as many 1 as -1 a column, so that a constant added to all cancels."""
    plain = np.resize(np.array([1.0, -1.0]), count)
    return np.stack([plain[shuffled(count, seed * PROJECTIONS + i)] for i in range(PROJECTIONS)], 1)


def project(values: np.ndarray) -> np.ndarray:
    """Return the projections (rows, PROJECTIONS) of values (rows, ...)."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    projected: np.ndarray = flat @ signs(flat.shape[1]) / np.sqrt(max(flat.shape[1], 1))
    return projected


def project_positions(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the projections (rows, PROJECTIONS) of values (rows, src, ...), without the padding.

    Args:
        values: values of each source position, (rows, src, ...).
        lengths: number of positions that are no padding, (rows).
    """
    rows, src = values.shape[:2]
    is_padding = np.arange(src) >= lengths[:, None]  # (rows, src)
    each = project(values.reshape(rows * src, -1)).reshape(rows, src, PROJECTIONS)
    each[is_padding] = 0.0
    projected: np.ndarray = (each * _position_signs(src)).sum(1) / np.sqrt(np.maximum(lengths, 1))[:, None]
    return projected


def _position_signs(src: int) -> np.ndarray:
    """Return signs (src, PROJECTIONS); those of a position are the same for every `src`."""
    size = 64
    while size < src:
        size *= 2
    blocks = [signs(64, seed) for seed in range(1, size // 64 + 1)]
    return np.concatenate(blocks)[:src]


def batch_sizes(limit: int | None) -> Sequence[int]:
    """Return the batch sizes to probe, up to the `limit` of the runtime."""
    return [size for size in BATCHES if limit is None or size <= limit]


def entry_batches(count: int, sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield indices of `count` probes in batches of every size, until each probe and each size was there."""
    start, number = 0, 0
    while count and (start < count or number < len(sizes)):
        size = sizes[number % len(sizes)]
        yield np.arange(start, start + size) % count
        start, number = start + size, number + 1


def probed_lengths(maximum: int) -> list[int]:
    """Return the source lengths to probe: every one up to DENSE_LENGTHS, then SPARSE_LENGTHS up to the maximum."""
    dense = list(range(1, min(maximum, DENSE_LENGTHS) + 1))
    steps = range(1, SPARSE_LENGTHS + 1) if maximum > DENSE_LENGTHS else ()
    above = (DENSE_LENGTHS + (maximum - DENSE_LENGTHS) * step // SPARSE_LENGTHS for step in steps)
    return sorted({*dense, *above})
