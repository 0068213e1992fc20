"""CUDA memory, streams and graphs for the runtime `trt`, through libcudart and ctypes.

libcudart is part of JetPack, of the CUDA toolkit and of the wheels on which TensorRT depends. Every return code is
checked, and a failure is an error with CUDA's name for it. The device is the first one of CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_size_t, c_ulonglong, c_void_p
from dataclasses import dataclass
from typing import Any

from edge_attn.errors import NotTestedError
from edge_attn.runtimes.trt.cuda_libraries import libcudart_paths

DRIVER = "libcuda.so.1"
OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation."""
ATTRIBUTES = (75, 76, 16, 18)
"""cudaDevAttrComputeCapabilityMajor and Minor, cudaDevAttrMultiProcessorCount, cudaDevAttrIntegrated."""
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
NON_BLOCKING = 1
THREAD_LOCAL = 1
"""Capture mode in which other threads may use CUDA."""
PROPERTIES_BYTES = 1 << 14
"""More than the size of cudaDeviceProp, which grows with each CUDA version. Its first member is the name."""

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
"""Argument types, the same from CUDA 11.4 to 13. Each function returns an error code, 0 for success."""
ERROR_TEXT_FUNCTIONS = ("cudaGetErrorName", "cudaGetErrorString")


@dataclass(frozen=True)
class Gpu:
    """A GPU. Sizes are in bytes."""

    name: str
    """CUDA's name, as in `Orin` or `NVIDIA H200`."""
    compute_capability: tuple[int, int]
    multiprocessors: int
    """Number of multiprocessors, which distinguishes an Orin Nano from an AGX Orin: both are named `Orin`."""
    integrated: bool
    """True if the GPU shares its memory with the CPU, as on a Jetson. `free` then excludes memory that the system can
    reclaim, such as its file cache."""
    total: int
    free: int


class Cuda:
    """libcudart on the first device. Addresses and handles are integers.

    Raises:
        NotTestedError: by every method if CUDA returns an error. The text contains the call and CUDA's reason.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def devices(self) -> int:
        """Return the number of devices."""
        count = c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        return count.value

    def gpu(self) -> Gpu:
        """Return the first device."""
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
        """Return free and total bytes."""
        free, total = c_size_t(), c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    # ---- memory

    def allocate(self, size: int, label: str) -> int:
        """Return the address of `size` new bytes on the device. `label` is their use, for the error text."""
        return self._allocate("cudaMalloc", size, label)

    def allocate_pinned(self, size: int, label: str) -> int:
        """Return the address of `size` new bytes of pinned host memory, which asynchronous copies need."""
        return self._allocate("cudaMallocHost", size, f"{label} (pinned)")

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def free_pinned(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def to_device(self, device: int, pinned: int, size: int, stream: int) -> None:
        """Start a copy to the device.

        Args:
            device: target address.
            pinned: source address in pinned memory, which must not change before the stream is synchronized.
            size: number of bytes.
            stream: the stream.
        """
        self._call("cudaMemcpyAsync", device, pinned, size, HOST_TO_DEVICE, stream)

    def to_host(self, pinned: int, device: int, size: int, stream: int) -> None:
        """Start a copy to the host.

        Args:
            pinned: target address in pinned memory, whose content is valid after the stream is synchronized.
            device: source address.
            size: number of bytes.
            stream: the stream.
        """
        self._call("cudaMemcpyAsync", pinned, device, size, DEVICE_TO_HOST, stream)

    # ---- streams

    def create_stream(self) -> int:
        return self._handle("cudaStreamCreateWithFlags", NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait for everything that was started on the stream."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    # ---- graphs

    def begin_capture(self, stream: int) -> None:
        """Record what is started on the stream from now on, instead of running it."""
        self._call("cudaStreamBeginCapture", stream, THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """Return the executable graph. The capture ends, also on an error."""
        graph = c_void_p()
        self._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        try:
            return self._handle("cudaGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def abandon_capture(self, stream: int) -> None:
        """End a capture in which a call failed. CUDA's error is ignored, and a partial graph is destroyed."""
        graph = c_void_p()
        self._code("cudaStreamEndCapture", stream, ctypes.byref(graph))
        self._clear_last_error()
        if graph.value:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    # ---- calls

    def _handle(self, name: str, *arguments: Any) -> int:
        handle = c_void_p()
        self._call(name, ctypes.byref(handle), *arguments)
        return handle.value or 0

    def _allocate(self, name: str, size: int, label: str) -> int:
        address = c_void_p()
        code = self._code(name, ctypes.byref(address), size)
        if code == OUT_OF_MEMORY:
            self._clear_last_error()
            free, total = map(format_mib, self.memory())
            raise NotTestedError(
                f"the GPU has too little memory: {label} needs {format_mib(size)}, {free} of {total} are free; "
                f"close other programs that use it, or choose smaller buckets"
            )
        self._check(name, code)
        return address.value or 0

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
        self._clear_last_error()
        reason = ": ".join(getattr(self._library, text)(code).decode() for text in ERROR_TEXT_FUNCTIONS)
        raise NotTestedError(f"CUDA failed in {name}: {reason}; run: edge-attn doctor")

    def _clear_last_error(self) -> None:
        """Clear CUDA's last error. TensorRT reads it, and would report this one as its own."""
        self._library.cudaGetLastError()


def open_cuda() -> Cuda:
    """Return the first libcudart that has a device. The newest may need a newer driver than an older one.

    Raises:
        NotTestedError: there is no libcudart, or no device.
    """
    reasons = []
    for name in libcudart_paths():
        try:
            cuda = Cuda(_declare(ctypes.CDLL(name)))
        except OSError:
            continue
        try:
            if cuda.devices() > 0:
                return cuda
            reasons.append(f"{name} has no device; run: edge-attn doctor")
        except NotTestedError as error:
            reasons.append(f"{name}: {error}")
    if reasons:
        raise NotTestedError(f"there is no NVIDIA GPU that CUDA can use here: {reasons[0]}")
    raise NotTestedError(
        "CUDA is not here: there is no libcudart; on a Jetson run: sudo apt-get install nvidia-jetpack, "
        "elsewhere install NVIDIA's driver and the CUDA runtime; then run: edge-attn doctor"
    )


def driver_cuda() -> tuple[int, int] | None:
    """Return the CUDA version of this machine's driver, as (13, 0), or None if there is no driver."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    number = c_int()
    failed = driver.cuDriverGetVersion(ctypes.byref(number))
    return None if failed or not number.value else (number.value // 1000, number.value % 1000 // 10)


def _declare(library: Any) -> Any:
    """Declare argument and return types of the functions."""
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, name, None)
        if function is not None:
            function.argtypes, function.restype = arguments, c_int
    for name in ERROR_TEXT_FUNCTIONS:
        function = getattr(library, name)
        function.argtypes, function.restype = (c_int,), c_char_p
    return library


def format_mib(size: int) -> str:
    """Return a size as text."""
    return f"{size / 2**20:,.1f} MiB"
