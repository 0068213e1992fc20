"""A fake of libcudart in host memory, for tests of the runtime `trt` without a GPU.

Work on a stream runs only when the stream is synchronized, so that a missing synchronization is detected. Freed memory
is never used again, so that a use after free is detected. Errors of CUDA are returned as codes. A `Fault` is raised for
mistakes that CUDA would not report, or that would crash.
"""

# ruff: noqa: N802, N818  (the functions have CUDA's names)

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OUT_OF_MEMORY, INVALID_HANDLE, NO_CAPTURE, BROKEN_CAPTURE = 2, 400, 900, 901
ERRORS = {
    2: ("cudaErrorMemoryAllocation", "out of memory"),
    400: ("cudaErrorInvalidResourceHandle", "invalid resource handle"),
    900: ("cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"),
    901: ("cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"),
}


class Fault(AssertionError):
    """A mistake that CUDA would not report, or that would crash."""


@dataclass
class Block:
    address: int
    size: int
    pinned: bool
    data: Any
    alive: bool = True


@dataclass
class Op:
    """An operation on a stream, and the memory that it accesses: (address, bytes, pinned, label)."""

    run: Callable[[], None]
    accesses: list[tuple[int, int, bool, str]]


@dataclass
class Stream:
    waiting: list[Op] = field(default_factory=list)
    recorded: list[Op] | None = None
    broken: bool = False


def function(method: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a function of libcudart: count its calls, and return an error code that a test has injected."""

    def call(self: FakeCuda, *arguments: Any) -> int:
        name = method.__name__
        self.calls[name] += 1
        values = [a if hasattr(a, "_obj") or isinstance(a, ctypes.Array) else _number(a) for a in arguments]
        code, successes = self.failing.get(name, (0, 0))
        injected = code if self.calls[name] > successes else 0
        if injected and name == "cudaStreamEndCapture":  # the capture ends also on an error
            self.handles[values[0]].recorded = None
        code = injected or method(self, *values) or 0
        self.last = code or self.last
        return code

    return call


def _number(value: Any) -> int:
    return getattr(value, "value", value) or 0


class FakeCuda:
    """Fake of libcudart."""

    def __init__(self, total: int = 1 << 30, name: str = "Orin") -> None:
        self.total, self.name = total, name
        self.calls: Counter[str] = Counter()
        self.failing: dict[str, tuple[int, int]] = {}
        self.blocks: dict[int, Block] = {}
        self.handles: dict[int, Any] = {}
        self.last = 0
        """The last error, until it is read."""
        self.seconds = 0.0
        """Total run time of the engines, on a simulated clock."""
        self._next = 1

    # interface for tests

    def fail(self, name: str, code: int, successes: int = 0) -> None:
        """Let the function `name` return `code`, after `successes` more successful calls."""
        self.failing[name] = code, self.calls[name] + successes

    def used(self, pinned: bool = False) -> int:
        return sum(block.size for block in self.blocks.values() if block.alive and block.pinned is pinned)

    def revive(self) -> None:
        """Undo frees and drop waiting operations, so that a runtime can be closed after an injected fault."""
        for block in self.blocks.values():
            block.alive = True
        for stream in self.handles.values():
            if isinstance(stream, Stream):
                stream.waiting.clear()
                stream.recorded = None

    def forget(self) -> None:
        """Forget everything that was not freed."""
        self.blocks.clear()
        self.handles.clear()

    def leaks(self) -> list[str]:
        blocks = [block for block in self.blocks.values() if block.alive]
        left = [f"{block.size} {'pinned' if block.pinned else 'bytes'}" for block in blocks]
        return left + [type(handle).__name__ for handle in self.handles.values()]

    def check(self, address: int, size: int, pinned: bool, label: str) -> Block:
        """Return the live block that contains the bytes."""
        for block in self.blocks.values():
            if block.address <= address < block.address + max(block.size, 1):
                if not block.alive:
                    raise Fault(f"{label}: use after free")
                if address + size > block.address + block.size:
                    raise Fault(f"{label}: {address + size - block.address - block.size} bytes past its buffer")
                if block.pinned is not pinned:
                    raise Fault(f"{label}: memory of the wrong kind")
                return block
        raise Fault(f"{label}: not allocated by CUDA")

    def start(self, stream: int, op: Op) -> int:
        for access in op.accesses:
            self.check(*access)
        queue = self.handles[stream]
        if queue.recorded is not None:
            queue.recorded.append(op)
        else:
            queue.waiting.append(op)
        return 0

    def _finish(self, stream: Stream) -> None:
        while stream.waiting:
            op = stream.waiting.pop(0)
            for access in op.accesses:
                self.check(*access)
            op.run()

    def _new(self, handle: Any) -> int:
        self._next += 1
        self.handles[self._next] = handle
        return self._next

    def _take(self, handle: int, kind: type) -> Any:
        if not isinstance(self.handles.get(handle), kind):
            raise Fault(f"{kind.__name__} {handle} was destroyed twice, or never existed")
        return self.handles.pop(handle)

    # libcudart's functions

    def cudaGetErrorName(self, code: int) -> bytes:
        return ERRORS.get(code, (f"cudaError{code}", ""))[0].encode()

    def cudaGetErrorString(self, code: int) -> bytes:
        return ERRORS.get(code, ("", "injected"))[1].encode()

    def cudaGetLastError(self) -> int:
        code, self.last = self.last, 0
        return code

    @function
    def cudaGetDeviceCount(self, count: Any) -> None:
        count._obj.value = 1

    @function
    def cudaGetDeviceProperties(self, properties: Any, device: int) -> None:
        properties.value = self.name.encode()

    @function
    def cudaDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:
        value._obj.value = {75: 8, 76: 7, 16: 8, 18: 1}[attribute]

    @function
    def cudaMemGetInfo(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = self.total - self.used(), self.total

    @function
    def cudaMalloc(self, pointer: Any, size: int) -> int | None:
        return self._allocate(pointer, size, False)

    @function
    def cudaMallocHost(self, pointer: Any, size: int) -> int | None:
        return self._allocate(pointer, size, True)

    def _allocate(self, pointer: Any, size: int, pinned: bool) -> int | None:
        if any(stream.recorded is not None for stream in self.handles.values() if isinstance(stream, Stream)):
            return NO_CAPTURE
        if not pinned and self.used() + size > self.total:
            return OUT_OF_MEMORY
        data = ctypes.create_string_buffer(size + 256)
        address = (ctypes.addressof(data) + 255) // 256 * 256
        ctypes.memset(data, 0xA5, size + 256)
        self.blocks[address] = Block(address, size, pinned, data)
        pointer._obj.value = address
        return None

    @function
    def cudaFree(self, address: int) -> None:
        self._free(address, False)

    @function
    def cudaFreeHost(self, address: int) -> None:
        self._free(address, True)

    def _free(self, address: int, pinned: bool) -> None:
        block = self.blocks.get(address)
        if block is None or block.pinned is not pinned:
            raise Fault("freed memory that was never allocated")
        if not block.alive:
            raise Fault("double free")
        for stream in self.handles.values():
            for op in stream.waiting if isinstance(stream, Stream) else []:
                if any(address <= access[0] < address + block.size for access in op.accesses):
                    raise Fault("freed memory that a stream still uses")
        block.alive = False
        ctypes.memset(block.data, 0xDD, block.size)

    @function
    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> int:
        pinned = {1: (False, True), 2: (True, False)}[kind]
        accesses = [(to, size, pinned[0], "the target of a copy"), (source, size, pinned[1], "the source of a copy")]
        return self.start(stream, Op(lambda: ctypes.memmove(to, source, size) and None, accesses))

    @function
    def cudaStreamCreateWithFlags(self, pointer: Any, flags: int) -> None:
        pointer._obj.value = self._new(Stream())

    @function
    def cudaStreamSynchronize(self, stream: int) -> int | None:
        if self.handles[stream].recorded is not None:
            self.handles[stream].broken = True
            return NO_CAPTURE
        self._finish(self.handles[stream])
        return None

    @function
    def cudaStreamDestroy(self, stream: int) -> None:
        if self._take(stream, Stream).waiting:
            raise Fault("a stream was destroyed before it was synchronized")

    @function
    def cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        self.handles[stream].recorded = []

    @function
    def cudaStreamEndCapture(self, stream: int, graph: Any) -> int | None:
        queue = self.handles[stream]
        recorded, queue.recorded, broken, queue.broken = queue.recorded, None, queue.broken, False
        if broken:
            return BROKEN_CAPTURE
        graph._obj.value = self._new(Recorded(recorded))
        return None

    @function
    def cudaGraphInstantiateWithFlags(self, ready: Any, graph: int, flags: int) -> None:
        ready._obj.value = self._new(Ready(self.handles[graph].ops))

    @function
    def cudaGraphLaunch(self, graph: int, stream: int) -> int:
        if not isinstance(self.handles.get(graph), Ready):
            return INVALID_HANDLE
        for op in self.handles[graph].ops:
            self.start(stream, op)
        return 0

    @function
    def cudaGraphDestroy(self, graph: int) -> None:
        self._take(graph, Recorded)

    @function
    def cudaGraphExecDestroy(self, graph: int) -> None:
        self._take(graph, Ready)


@dataclass
class Recorded:
    ops: list[Op]


@dataclass
class Ready:
    ops: list[Op]
