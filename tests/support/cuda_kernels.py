"""Run one kernel from PTX through the CUDA driver (libcuda, by ctypes), for the tests and benchmarks of plugins.

with Gpu() as gpu:
    function = gpu.kernel(ptx(gpu.architecture), "additive_attention_fp32")
    address = gpu.upload(array)
    gpu.launch(function, blocks, threads, (address, ..., 5, ...))
    gpu.download(address)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from edge_attn.errors import NotTestedError

LIBRARY = "libcuda.so.1"
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""

HANDLE = ctypes.c_void_p
ADDRESS = ctypes.c_uint64
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetAttribute": (ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(HANDLE), ctypes.c_int),
    "cuDevicePrimaryCtxRelease_v2": (ctypes.c_int,),
    "cuCtxSetCurrent": (HANDLE,),
    "cuCtxSynchronize": (),
    "cuModuleLoadData": (ctypes.POINTER(HANDLE), ctypes.c_char_p),
    "cuModuleUnload": (HANDLE,),
    "cuModuleGetFunction": (ctypes.POINTER(HANDLE), HANDLE, ctypes.c_char_p),
    "cuMemAlloc_v2": (ctypes.POINTER(ADDRESS), ctypes.c_size_t),
    "cuMemFree_v2": (ADDRESS,),
    "cuMemcpyHtoD_v2": (ADDRESS, HANDLE, ctypes.c_size_t),
    "cuMemcpyDtoH_v2": (HANDLE, ADDRESS, ctypes.c_size_t),
    "cuLaunchKernel": (HANDLE, *[ctypes.c_uint] * 7, HANDLE, ctypes.POINTER(HANDLE), HANDLE),
    "cuEventCreate": (ctypes.POINTER(HANDLE), ctypes.c_uint),
    "cuEventDestroy_v2": (HANDLE,),
    "cuEventRecord": (HANDLE, HANDLE),
    "cuEventSynchronize": (HANDLE,),
    "cuEventElapsedTime": (ctypes.POINTER(ctypes.c_float), HANDLE, HANDLE),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


class Address(int):
    """Address of an array on the GPU."""


class Gpu:
    """First GPU, in its primary context (which libcudart uses too), on the default stream.

    Raises:
        NotTestedError: there is no driver or no GPU, or a call of the driver fails; the sentence names the call.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise NotTestedError(f"there is no NVIDIA driver here ({error}); run it on a machine with a GPU") from error
        for name, arguments in SIGNATURES.items():
            getattr(self._cuda, name).argtypes = arguments
        self._call("cuInit", 0)
        device, context = ctypes.c_int(), HANDLE()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode()
        major, minor = (self._attribute(device, which) for which in (MAJOR, MINOR))
        self.architecture = f"sm_{major}{minor}"
        """Architecture that PTX is compiled for, as "sm_87"."""
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._device = device
        self._modules: dict[bytes, HANDLE] = {}
        self._arrays: dict[Address, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._call("cuCtxSetCurrent", context)

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free everything, even if one call fails; then raise the first failure."""
        calls: list[tuple[str, Any]] = [("cuMemFree_v2", address) for address in self._arrays]
        calls += [("cuModuleUnload", module) for module in self._modules.values()]
        calls += [("cuCtxSetCurrent", None), ("cuDevicePrimaryCtxRelease_v2", self._device)]
        self._arrays, self._modules = {}, {}
        failed = [(name, code) for name, argument in calls if (code := getattr(self._cuda, name)(argument)) != 0]
        if failed:
            raise NotTestedError(self._failure(*failed[0]))

    def kernel(self, ptx: bytes, name: str) -> HANDLE:
        """Return the kernel `name` of `ptx`, which the driver compiles for this GPU once."""
        if ptx not in self._modules:
            module = HANDLE()
            self._call("cuModuleLoadData", ctypes.byref(module), ptx)
            self._modules[ptx] = module
        function = HANDLE()
        self._call("cuModuleGetFunction", ctypes.byref(function), self._modules[ptx], name.encode())
        return function

    def upload(self, array: np.ndarray) -> Address:
        """Return the address of a copy of `array`, row by row, on the GPU."""
        array = np.ascontiguousarray(array)
        address = self.empty(array.shape, array.dtype)
        self._call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)
        return address

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Address:
        """Return the address of an uninitialized array on the GPU."""
        pointer, kind = ADDRESS(), np.dtype(dtype)
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), int(np.prod(shape)) * kind.itemsize)
        address = Address(pointer.value)
        self._arrays[address] = (shape, kind)
        return address

    def download(self, address: Address) -> np.ndarray:
        """Return a copy of the array at `address`, after all work of the GPU."""
        shape, kind = self._arrays[address]
        array = np.empty(shape, kind)
        self.synchronize()
        self._call("cuMemcpyDtoH_v2", array.ctypes.data, address, array.nbytes)
        return array

    def free(self, address: Address) -> None:
        del self._arrays[address]
        self._call("cuMemFree_v2", address)

    def launch(self, function: HANDLE, blocks: int, threads: int, arguments: Sequence[int]) -> None:
        """Start a kernel.

        Args:
            function: the kernel.
            blocks: size of the grid.
            threads: threads a block.
            arguments: an Address is passed as a pointer, another int as an int32.
        """
        values = [ADDRESS(x) if isinstance(x, Address) else ctypes.c_int32(x) for x in arguments]
        pointers = (HANDLE * len(values))(*(ctypes.addressof(value) for value in values))
        self._call("cuLaunchKernel", function, blocks, 1, 1, threads, 1, 1, 0, None, pointers, None)

    def synchronize(self) -> None:
        """Wait for all work of the GPU; a fault of a kernel is raised here."""
        self._call("cuCtxSynchronize")

    def milliseconds(self, function: HANDLE, blocks: int, threads: int, arguments: Sequence[int], repeat: int) -> float:
        """Return the mean time of a launch by the GPU's clock, after a warm-up.

        Args:
            function: the kernel.
            blocks: size of the grid.
            threads: threads a block.
            arguments: as for `launch`.
            repeat: number of launches of the warm-up, and of those timed.
        """
        events = [HANDLE(), HANDLE()]
        for event in events:
            self._call("cuEventCreate", ctypes.byref(event), 0)
        try:
            for timed in (False, True):
                if timed:
                    self._call("cuEventRecord", events[0], None)
                for _ in range(repeat):
                    self.launch(function, blocks, threads, arguments)
            self._call("cuEventRecord", events[1], None)
            self._call("cuEventSynchronize", events[1])
            elapsed = ctypes.c_float()
            self._call("cuEventElapsedTime", ctypes.byref(elapsed), *events)
            return elapsed.value / repeat
        finally:
            for event in events:
                self._call("cuEventDestroy_v2", event)

    def _attribute(self, device: ctypes.c_int, which: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code != 0:
            raise NotTestedError(self._failure(name, code))

    def _failure(self, name: str, code: int) -> str:
        text = ctypes.c_char_p()
        self._cuda.cuGetErrorString(code, ctypes.byref(text))
        return f"the CUDA driver fails at {name}: {(text.value or b'unknown error').decode()} ({code})"
