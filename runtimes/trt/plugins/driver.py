"""Runs one kernel from PTX through the CUDA driver (libcuda, by ctypes), for a plugin's tests and benchmarks.

An engine does not need it.

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
    """Of an array on the GPU."""


class Gpu:
    """The first GPU, in its primary context (which libcudart uses too), on the default stream.

    Raises:
        NotTestedError: there is no driver or no GPU, or a call of the driver fails; the sentence names it.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise NotTestedError(f"there is no NVIDIA driver here ({error}); run it where there is a GPU") from error
        for name, arguments in SIGNATURES.items():
            getattr(self._cuda, name).argtypes = arguments
        self._call("cuInit", 0)
        device, context = ctypes.c_int(), HANDLE()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        room = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", room, len(room), device)
        self.name = room.value.decode()
        major, minor = (self._attribute(device, which) for which in (MAJOR, MINOR))
        self.architecture = f"sm_{major}{minor}"
        """As "sm_87": what PTX is compiled for."""
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
        """Frees everything, even if one thing fails; then raises the first failure."""
        calls: list[tuple[str, Any]] = [("cuMemFree_v2", address) for address in self._arrays]
        calls += [("cuModuleUnload", module) for module in self._modules.values()]
        calls += [("cuCtxSetCurrent", None), ("cuDevicePrimaryCtxRelease_v2", self._device)]
        self._arrays, self._modules = {}, {}
        failed = [(name, code) for name, argument in calls if (code := getattr(self._cuda, name)(argument)) != 0]
        if failed:
            raise NotTestedError(self._failure(*failed[0]))

    def kernel(self, ptx: bytes, name: str) -> HANDLE:
        """The kernel `name` of `ptx`, which the driver compiles for this GPU, once."""
        if ptx not in self._modules:
            module = HANDLE()
            self._call("cuModuleLoadData", ctypes.byref(module), ptx)
            self._modules[ptx] = module
        function = HANDLE()
        self._call("cuModuleGetFunction", ctypes.byref(function), self._modules[ptx], name.encode())
        return function

    def upload(self, array: np.ndarray) -> Address:
        """A copy of `array`, row by row, on the GPU."""
        array = np.ascontiguousarray(array)
        address = self.empty(array.shape, array.dtype)
        self._call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)
        return address

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Address:
        """Room for an array on the GPU."""
        pointer, kind = ADDRESS(), np.dtype(dtype)
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), int(np.prod(shape)) * kind.itemsize)
        address = Address(pointer.value)
        self._arrays[address] = (shape, kind)
        return address

    def download(self, address: Address) -> np.ndarray:
        """What stands in the array at `address`, once the GPU has done all it was asked."""
        shape, kind = self._arrays[address]
        array = np.empty(shape, kind)
        self.wait()
        self._call("cuMemcpyDtoH_v2", array.ctypes.data, address, array.nbytes)
        return array

    def free(self, address: Address) -> None:
        del self._arrays[address]
        self._call("cuMemFree_v2", address)

    def launch(self, function: HANDLE, blocks: int, threads: int, arguments: Sequence[int]) -> None:
        """Starts the kernel; of the arguments, an Address is passed as a pointer, another int as an int32."""
        values = [ADDRESS(x) if isinstance(x, Address) else ctypes.c_int32(x) for x in arguments]
        places = (HANDLE * len(values))(*(ctypes.addressof(value) for value in values))
        self._call("cuLaunchKernel", function, blocks, 1, 1, threads, 1, 1, 0, None, places, None)

    def wait(self) -> None:
        """Until the GPU has done all it was asked; a fault of a kernel is raised here."""
        self._call("cuCtxSynchronize")

    def milliseconds(self, function: HANDLE, blocks: int, threads: int, arguments: Sequence[int], repeat: int) -> float:
        """Of one launch: the mean of `repeat` in a row, by the GPU's clock, after as many that do not count."""
        events = [HANDLE(), HANDLE()]
        for event in events:
            self._call("cuEventCreate", ctypes.byref(event), 0)
        try:
            for counted in (False, True):
                if counted:
                    self._call("cuEventRecord", events[0], None)
                for _ in range(repeat):
                    self.launch(function, blocks, threads, arguments)
            self._call("cuEventRecord", events[1], None)
            self._call("cuEventSynchronize", events[1])
            passed = ctypes.c_float()
            self._call("cuEventElapsedTime", ctypes.byref(passed), *events)
            return passed.value / repeat
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
