"""CUDA through libcudart by ctypes: memory, one stream, and graphs, as the runtime `trt` needs them.

No wheel brings it: JetPack and the toolkit do, and so does the wheel of TensorRT. Every return code is checked, and
what went wrong is one sentence with CUDA's own name for it. The device is the first that CUDA_VISIBLE_DEVICES leaves.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_size_t, c_ulonglong, c_void_p
from dataclasses import dataclass
from typing import Any

from edge_attn.errors import NotTestedError
from edge_attn.runtimes.trt.cuda_libraries import candidates as _candidates

OUT_OF_MEMORY = 2
ATTRIBUTES = (75, 76, 16, 18)
"""cudaDevAttrComputeCapabilityMajor and Minor, cudaDevAttrMultiProcessorCount, cudaDevAttrIntegrated."""
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
NON_BLOCKING = 1
THREAD_LOCAL = 1
"""The capture mode: another thread may go on using CUDA."""
PROPERTIES_BYTES = 1 << 14
"""Above the size of cudaDeviceProp, which grows from one CUDA to the next; its name stands first in every one."""

POINTER = ctypes.POINTER(c_void_p)
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cudaGetDeviceCount": (ctypes.POINTER(c_int),),
    "cudaGetDeviceProperties": (c_void_p, c_int),
    "cudaDeviceGetAttribute": (ctypes.POINTER(c_int), c_int, c_int),
    "cudaMemGetInfo": (ctypes.POINTER(c_size_t), ctypes.POINTER(c_size_t)),
    "cudaMalloc": (POINTER, c_size_t),
    "cudaFree": (c_void_p,),
    "cudaMallocHost": (POINTER, c_size_t),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": (POINTER, ctypes.c_uint),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER),
    "cudaGraphInstantiateWithFlags": (POINTER, c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGetLastError": (),
}
"""Their arguments, the same in every CUDA from 11.4 to 13; each returns a code, 0 if all went well."""
WORDS = ("cudaGetErrorName", "cudaGetErrorString")


@dataclass(frozen=True)
class Gpu:
    """The device; sizes in bytes."""

    name: str
    """As CUDA has it: `Orin`, `NVIDIA H200`."""
    compute_capability: tuple[int, int]
    multiprocessors: int
    """What tells an Orin Nano from an AGX Orin: both are called `Orin`."""
    integrated: bool
    """True where it shares its memory with the CPU, as on a Jetson; `free` then leaves out what the system would give
    back, such as its file cache."""
    total: int
    free: int


class Cuda:
    """libcudart, on the first device. Addresses and handles are integers.

    Raises (every method):
        NotTestedError: CUDA says no; the sentence names the call and CUDA's reason.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def devices(self) -> int:
        count = c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        return count.value

    def gpu(self) -> Gpu:
        properties = ctypes.create_string_buffer(PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", properties, 0)
        numbers = []
        for attribute in ATTRIBUTES:
            number = c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(number), attribute, 0)
            numbers.append(number.value)
        free, total = self.memory()
        major, minor, multiprocessors, integrated = numbers
        name = properties.value.decode(errors="replace")
        return Gpu(name, (major, minor), multiprocessors, bool(integrated), total, free)

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all."""
        free, total = c_size_t(), c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    # ---- memory

    def allocate(self, size: int, what: str) -> int:
        """The address of `size` bytes on the device; `what` they are for stands in the sentence if there are none."""
        return self._allocate("cudaMalloc", size, what)

    def allocate_pinned(self, size: int, what: str) -> int:
        """The address of `size` bytes of the host's memory that copies to and from the device may use meanwhile."""
        return self._allocate("cudaMallocHost", size, f"{what} (pinned)")

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def free_pinned(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def to_device(self, device: int, pinned: int, size: int, stream: int) -> None:
        """Starts a copy; the pinned bytes must not change before the stream is synchronized."""
        self._call("cudaMemcpyAsync", device, pinned, size, HOST_TO_DEVICE, stream)

    def to_host(self, pinned: int, device: int, size: int, stream: int) -> None:
        """Starts a copy; the pinned bytes are there once the stream is synchronized."""
        self._call("cudaMemcpyAsync", pinned, device, size, DEVICE_TO_HOST, stream)

    # ---- the stream

    def create_stream(self) -> int:
        return self._handle("cudaStreamCreateWithFlags", NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Waits for all that was started on it."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    # ---- graphs

    def begin_capture(self, stream: int) -> None:
        """What is started on the stream from here on is recorded, not run."""
        self._call("cudaStreamBeginCapture", stream, THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The recorded graph, ready to launch. The capture is over in any case."""
        recorded = c_void_p()
        self._call("cudaStreamEndCapture", stream, ctypes.byref(recorded))
        try:
            return self._handle("cudaGraphInstantiateWithFlags", recorded, 0)
        finally:
            self._call("cudaGraphDestroy", recorded)

    def abandon_capture(self, stream: int) -> None:
        """Ends a capture in which something failed. What CUDA says of it is not news, and a half graph goes away."""
        recorded = c_void_p()
        self._code("cudaStreamEndCapture", stream, ctypes.byref(recorded))
        self._forget()
        if recorded.value:
            self._call("cudaGraphDestroy", recorded)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    # ---- calls

    def _handle(self, name: str, *arguments: Any) -> int:
        made = c_void_p()
        self._call(name, ctypes.byref(made), *arguments)
        return made.value or 0

    def _allocate(self, name: str, size: int, what: str) -> int:
        made = c_void_p()
        code = self._code(name, ctypes.byref(made), size)
        if code == OUT_OF_MEMORY:
            self._forget()
            free, total = map(format_mib, self.memory())
            raise NotTestedError(
                f"the GPU has too little memory: {what} needs {format_mib(size)}, {free} of {total} are free; "
                f"close what else uses it, or choose smaller buckets"
            )
        self._check(name, code)
        return made.value or 0

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, self._code(name, *arguments))

    def _code(self, name: str, *arguments: Any) -> int:
        function = getattr(self._library, name, None)
        if function is None:
            raise NotTestedError(f"this libcudart has no {name}; expected CUDA 11.8 or newer, run: edge-attn doctor")
        return int(function(*arguments))

    def _check(self, name: str, code: int) -> None:
        if code == 0:
            return
        self._forget()
        reason = ": ".join(getattr(self._library, word)(code).decode() for word in WORDS)
        raise NotTestedError(f"CUDA failed in {name}: {reason}; run: edge-attn doctor")

    def _forget(self) -> None:
        """Else whoever asks for the last error next, as TensorRT does, takes this one for its own."""
        self._library.cudaGetLastError()


def open_cuda() -> Cuda:
    """The first libcudart that finds a device; an older one may where the newest needs a newer driver.

    Raises:
        NotTestedError: there is none, or no device for it.
    """
    reasons = []
    for name in _candidates():
        try:
            cuda = Cuda(_typed(ctypes.CDLL(name)))
        except OSError:
            continue
        try:
            if cuda.devices() > 0:
                return cuda
            reasons.append(f"{name} finds no device; run: edge-attn doctor")
        except NotTestedError as error:
            reasons.append(f"{name}: {error}")
    if reasons:
        raise NotTestedError(f"there is no NVIDIA GPU that CUDA can use here: {reasons[0]}")
    raise NotTestedError(
        "CUDA is not here: no libcudart was found; on a Jetson run: sudo apt-get install nvidia-jetpack, "
        "elsewhere install NVIDIA's driver and the CUDA runtime; then run: edge-attn doctor"
    )


def device() -> Gpu:
    """The device that the runtimes use.

    Raises:
        NotTestedError: there is none.
    """
    return open_cuda().gpu()


def _typed(library: Any) -> Any:
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, name, None)
        if function is not None:
            function.argtypes, function.restype = arguments, c_int
    for name in WORDS:
        function = getattr(library, name)
        function.argtypes, function.restype = (c_int,), c_char_p
    return library


def format_mib(size: int) -> str:
    """For people."""
    return f"{size / 2**20:,.1f} MiB"
