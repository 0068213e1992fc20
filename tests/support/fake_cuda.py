"""A small CUDA over host memory, for the runtime `trt` where there is no GPU: libcudart's functions.

What is started on a stream waits there until it is synchronized, as late as CUDA may do it, so a missing
synchronization shows. Memory that was freed is never used again, so a use after free shows. Where CUDA would say no, it
says no; where it would go on in silence, or crash, a `Fault` is raised.
"""

# ruff: noqa: N802, N818  (the functions have CUDA's names)

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OUT_OF_MEMORY, BAD_HANDLE, NO_CAPTURE, BROKEN_CAPTURE = 2, 400, 900, 901
WORDS = {
    2: ("cudaErrorMemoryAllocation", "out of memory"),
    400: ("cudaErrorInvalidResourceHandle", "invalid resource handle"),
    900: ("cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"),
    901: ("cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"),
}


class Fault(AssertionError):
    """What a GPU would not have forgiven, or not have noticed."""


@dataclass
class Block:
    address: int
    size: int
    pinned: bool
    data: Any
    alive: bool = True


@dataclass
class Op:
    """Something on a stream, and the memory that it touches: (address, bytes, pinned, for people)."""

    run: Callable[[], None]
    touches: list[tuple[int, int, bool, str]]


@dataclass
class Stream:
    waiting: list[Op] = field(default_factory=list)
    recorded: list[Op] | None = None
    broken: bool = False


def function(method: Callable[..., int | None]) -> Callable[..., int]:
    """A function of libcudart: counted, and failing where a test has planted a code."""

    def call(self: FakeCuda, *arguments: Any) -> int:
        name = method.__name__
        self.calls[name] += 1
        given = [a if hasattr(a, "_obj") or isinstance(a, ctypes.Array) else _number(a) for a in arguments]
        code, spared = self.failing.get(name, (0, 0))
        planted = code if self.calls[name] > spared else 0
        if planted and name == "cudaStreamEndCapture":  # a capture is over, whatever comes of it
            self.handles[given[0]].recorded = None
        code = planted or method(self, *given) or 0
        self.last = code or self.last
        return code

    return call


def _number(value: Any) -> int:
    return getattr(value, "value", value) or 0


class FakeCuda:
    """libcudart."""

    def __init__(self, total: int = 1 << 30, name: str = "Orin") -> None:
        self.total, self.name = total, name
        self.calls: Counter[str] = Counter()
        self.failing: dict[str, tuple[int, int]] = {}
        self.blocks: dict[int, Block] = {}
        self.handles: dict[int, Any] = {}
        self.last = 0
        """The last error, until somebody asks for it."""
        self.seconds = 0.0
        """What it has worked so far, by its own clock."""
        self._next = 1

    # what tests ask

    def fail(self, name: str, code: int, spared: int = 0) -> None:
        """From now on the function `name` gives `code`, except to its next `spared` calls."""
        self.failing[name] = code, self.calls[name] + spared

    def used(self, pinned: bool = False) -> int:
        return sum(block.size for block in self.blocks.values() if block.alive and block.pinned is pinned)

    def revive(self) -> None:
        """Forgives a planted fault: what was freed is live again, and what waits on a stream is forgotten."""
        for block in self.blocks.values():
            block.alive = True
        for stream in self.handles.values():
            if isinstance(stream, Stream):
                stream.waiting.clear()
                stream.recorded = None

    def forget(self) -> None:
        """Forgives what was not given back."""
        self.blocks.clear()
        self.handles.clear()

    def leaks(self) -> list[str]:
        blocks = [block for block in self.blocks.values() if block.alive]
        left = [f"{block.size} {'pinned' if block.pinned else 'bytes'}" for block in blocks]
        return left + [type(handle).__name__ for handle in self.handles.values()]

    def check(self, address: int, size: int, pinned: bool, what: str) -> Block:
        """The one live block that holds the bytes."""
        for block in self.blocks.values():
            if block.address <= address < block.address + max(block.size, 1):
                if not block.alive:
                    raise Fault(f"{what}: use after free")
                if address + size > block.address + block.size:
                    raise Fault(f"{what}: {address + size - block.address - block.size} bytes past its buffer")
                if block.pinned is not pinned:
                    raise Fault(f"{what}: memory of the wrong kind")
                return block
        raise Fault(f"{what}: no memory of CUDA's")

    def start(self, stream: int, op: Op) -> int:
        for touched in op.touches:
            self.check(*touched)
        queue = self.handles[stream]
        if queue.recorded is not None:
            queue.recorded.append(op)
        else:
            queue.waiting.append(op)
        return 0

    def _finish(self, stream: Stream) -> None:
        while stream.waiting:
            op = stream.waiting.pop(0)
            for touched in op.touches:
                self.check(*touched)
            op.run()

    def _new(self, handle: Any) -> int:
        self._next += 1
        self.handles[self._next] = handle
        return self._next

    def _take(self, handle: int, kind: type) -> Any:
        if not isinstance(self.handles.get(handle), kind):
            raise Fault(f"{kind.__name__} {handle} was destroyed twice, or never was")
        return self.handles.pop(handle)

    # libcudart's functions

    def cudaGetErrorName(self, code: int) -> bytes:
        return WORDS.get(code, (f"cudaError{code}", ""))[0].encode()

    def cudaGetErrorString(self, code: int) -> bytes:
        return WORDS.get(code, ("", "planted"))[1].encode()

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
            raise Fault("freed what was never allocated")
        if not block.alive:
            raise Fault("double free")
        for stream in self.handles.values():
            for op in stream.waiting if isinstance(stream, Stream) else []:
                if any(address <= touched[0] < address + block.size for touched in op.touches):
                    raise Fault("freed what a stream still uses")
        block.alive = False
        ctypes.memset(block.data, 0xDD, block.size)

    @function
    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> int:
        pinned = {1: (False, True), 2: (True, False)}[kind]
        touches = [(to, size, pinned[0], "a copy's end"), (source, size, pinned[1], "a copy's start")]
        return self.start(stream, Op(lambda: ctypes.memmove(to, source, size) and None, touches))

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
            return BAD_HANDLE
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
