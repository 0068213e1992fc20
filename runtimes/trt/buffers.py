"""Device memory of the runtime `trt`: buffers that are allocated once, their values, and copies from and to the host.

A value is a buffer at one generation. Each write increases the generation of its buffer, and a value of an older
generation raises an error when it is read, because its content has been overwritten.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from dataclasses import dataclass

import numpy as np

from edge_attn.errors import EdgeAttnError
from edge_attn.runtimes.trt.cudart import Cuda

CHUNK = 1 << 20
"""Bytes of the pinned memory through which values are copied, one chunk at a time."""


@dataclass(eq=False)
class Buffer:
    """Device memory of one tensor."""

    name: str
    address: int
    size: int
    generation: int = 0
    """Number of writes."""


@dataclass(frozen=True, eq=False)
class Pinned:
    """Host memory that the device can copy from and to."""

    address: int
    bytes: np.ndarray


@dataclass(frozen=True, eq=False)
class OnDevice:
    """A tensor on the device, padded at the end of each axis to the sizes of its profile."""

    buffer: Buffer
    generation: int
    dtype: str
    shape: tuple[int, ...]
    padded: tuple[int, ...]
    returned: Pinned | None = None
    """Host memory to which the launch that computes the tensor also copies it."""


class DeviceMemory:
    """All device memory of a runtime, and its one stream. `resources` frees what is allocated here."""

    def __init__(self, cuda: Cuda, resources: contextlib.ExitStack) -> None:
        self._cuda, self._resources = cuda, resources
        self._buffers: set[Buffer] = set()
        self.stream = cuda.create_stream()
        resources.callback(cuda.destroy_stream, self.stream)
        self.device_bytes = 0
        self._busy = False
        self._transfer = self.pinned("the transfer buffer", CHUNK)

    def buffer(self, name: str, size: int) -> Buffer:
        """Allocate a buffer on the device."""
        buffer = Buffer(name, self._cuda.allocate(size, name), size)
        self._resources.callback(self._cuda.free, buffer.address)
        self._buffers.add(buffer)
        self.device_bytes += size
        return buffer

    def pinned(self, name: str, size: int) -> Pinned:
        """Allocate pinned memory on the host."""
        address = self._cuda.allocate_pinned(size, name)
        self._resources.callback(self._cuda.free_pinned, address)
        return Pinned(address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)))

    def mark_busy(self) -> None:
        """Record that work was started on the stream."""
        self._busy = True

    def synchronize(self) -> None:
        """Wait for the stream, so that pinned memory may change."""
        if self._busy:
            self._cuda.synchronize(self.stream)
            self._busy = False

    def device_shape(self, value: OnDevice) -> tuple[int, ...]:
        """Return the padded shape of a value.

        Raises:
            EdgeAttnError: the value was overwritten, or belongs to another runtime.
        """
        if value.buffer not in self._buffers:
            raise EdgeAttnError(f"{value.buffer.name} belongs to another runtime; pass it to the one that computed it")
        if value.generation != value.buffer.generation:
            raise EdgeAttnError(
                f"{value.buffer.name} was overwritten by a later run; read outputs of the encoder before it runs "
                f"again, states before the second next step, and other outputs before the next step"
            )
        return value.padded

    def write(self, buffer: Buffer, array: np.ndarray) -> None:
        """Copy an array into a buffer."""
        buffer.generation += 1
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.synchronize()
        self._busy = True
        for start in range(0, raw.size, CHUNK):
            part = raw[start : start + CHUNK]
            self._transfer.bytes[: part.size] = part
            self._cuda.to_device(buffer.address + start, self._transfer.address, part.size, self.stream)
            self._cuda.synchronize(self.stream)
        self._busy = False

    def read(self, value: OnDevice) -> np.ndarray:
        """Return a copy of a value without its padding. Padding rows of the first axis are not copied."""
        shape = (*value.shape[:1], *self.device_shape(value)[1:])
        size = math.prod(shape) * np.dtype(value.dtype).itemsize
        raw = self._copy_chunks(value, size) if value.returned is None else self._copy_returned(value.returned, size)
        padded = raw.view(value.dtype).reshape(shape)
        return padded[tuple(slice(size) for size in value.shape)]

    def _copy_returned(self, returned: Pinned, size: int) -> np.ndarray:
        self.synchronize()
        return returned.bytes[:size].copy()

    def _copy_chunks(self, value: OnDevice, size: int) -> np.ndarray:
        raw = np.empty(size, np.uint8)
        self._busy = True
        for start in range(0, raw.size, CHUNK):
            part = raw[start : start + CHUNK]
            self._cuda.to_host(self._transfer.address, value.buffer.address + start, part.size, self.stream)
            self._cuda.synchronize(self.stream)
            part[...] = self._transfer.bytes[: part.size]
        self._busy = False
        return raw
