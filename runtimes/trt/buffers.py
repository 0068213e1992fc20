"""The device memory of the runtime `trt`: buffers that are allocated once, the values in them, and the way in and out.

A value is a buffer as it was at one time. A buffer that is written again ages, and a value of its past is refused
instead of read: what was overwritten is never taken for what it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from dataclasses import dataclass

import numpy as np

from edge_attn.errors import EdgeAttnError
from edge_attn.runtimes.trt.cudart import Cuda

TRANSFER = 1 << 20
"""Bytes of pinned memory through which values come and go, a part at a time."""


@dataclass(eq=False)
class Buffer:
    """Bytes on the device, for one tensor."""

    what: str
    address: int
    size: int
    generation: int = 0
    """How often it was written."""


@dataclass(frozen=True, eq=False)
class Pinned:
    """Bytes of the host that the device can copy from and to."""

    address: int
    bytes: np.ndarray


@dataclass(frozen=True, eq=False)
class OnDevice:
    """A tensor on the device. It lies there padded to its profile's sizes; row 0 of every axis comes first."""

    buffer: Buffer
    generation: int
    dtype: str
    shape: tuple[int, ...]
    padded: tuple[int, ...]
    returned: Pinned | None = None
    """Where the launch that makes it also copies it to, on the host."""


class DeviceMemory:
    """All that the runtime holds on the device, and its one stream. What it allocates is given back by `held`."""

    def __init__(self, cuda: Cuda, held: contextlib.ExitStack) -> None:
        self._cuda, self._held = cuda, held
        self._own: set[Buffer] = set()
        self.stream = cuda.create_stream()
        held.callback(cuda.destroy_stream, self.stream)
        self.device_bytes = 0
        self._busy = False
        self._transfer = self.pinned("the way back", TRANSFER)

    def buffer(self, what: str, size: int) -> Buffer:
        made = Buffer(what, self._cuda.allocate(size, what), size)
        self._held.callback(self._cuda.free, made.address)
        self._own.add(made)
        self.device_bytes += size
        return made

    def pinned(self, what: str, size: int) -> Pinned:
        address = self._cuda.allocate_pinned(size, what)
        self._held.callback(self._cuda.free_pinned, address)
        return Pinned(address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)))

    def mark_busy(self) -> None:
        """Something was started on the stream."""
        self._busy = True

    def synchronize(self) -> None:
        """Waits for what was started, so that pinned memory may change."""
        if self._busy:
            self._cuda.synchronize(self.stream)
            self._busy = False

    def device_shape(self, value: OnDevice) -> tuple[int, ...]:
        """The shape in which a value lies on the device.

        Raises:
            EdgeAttnError: it is no longer there, since its buffer was written again; or it is another runtime's.
        """
        if value.buffer not in self._own:
            raise EdgeAttnError(f"{value.buffer.what} is of another runtime; give it to the one that made it")
        if value.generation != value.buffer.generation:
            raise EdgeAttnError(
                f"{value.buffer.what} was overwritten by a later run; what the encoder gives must be read before it "
                f"runs again, a state before the second step after it, and all else before the next step"
            )
        return value.padded

    def write(self, buffer: Buffer, array: np.ndarray) -> None:
        """Copies an array into a buffer, which ages."""
        buffer.generation += 1
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.synchronize()
        self._busy = True
        for start in range(0, raw.size, TRANSFER):
            part = raw[start : start + TRANSFER]
            self._transfer.bytes[: part.size] = part
            self._cuda.to_device(buffer.address + start, self._transfer.address, part.size, self.stream)
            self._cuda.synchronize(self.stream)
        self._busy = False

    def read(self, value: OnDevice) -> np.ndarray:
        """The value without its padding, of whose first axis no row is fetched."""
        device_shape = (*value.shape[:1], *self.device_shape(value)[1:])
        size = math.prod(device_shape) * np.dtype(value.dtype).itemsize
        raw = self._fetch(value, size) if value.returned is None else self._await(value.returned, size)
        whole = raw.view(value.dtype).reshape(device_shape)
        return whole[tuple(slice(size) for size in value.shape)]

    def _await(self, returned: Pinned, size: int) -> np.ndarray:
        self.synchronize()
        return returned.bytes[:size].copy()

    def _fetch(self, value: OnDevice, size: int) -> np.ndarray:
        raw = np.empty(size, np.uint8)
        self._busy = True
        for start in range(0, raw.size, TRANSFER):
            part = raw[start : start + TRANSFER]
            self._cuda.to_host(self._transfer.address, value.buffer.address + start, part.size, self.stream)
            self._cuda.synchronize(self.stream)
            part[...] = self._transfer.bytes[: part.size]
        self._busy = False
        return raw
