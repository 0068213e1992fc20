"""The CUDA binding on a libcudart in host memory (fake_cudart.c), and on a GPU if there is one."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from paths import TESTS

from edge_attn.errors import NotTestedError
from edge_attn.runtimes.doctor import probes
from edge_attn.runtimes.trt import cudart
from edge_attn.runtimes.trt.cudart import Cuda, Gpu, open_cuda

SOURCE = TESTS / "support" / "fake_cudart.c"


@pytest.fixture(scope="session")
def library_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("cudart") / "libcudart.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-Werror", "-Wall", "-o", library, SOURCE], check=True)
    return library


@pytest.fixture
def library(library_path, tmp_path) -> ctypes.CDLL:
    """Load a fresh copy of the library, because it counts allocations."""
    return ctypes.CDLL(str(shutil.copy(library_path, tmp_path / "libcudart.so")))


@pytest.fixture
def cuda(library) -> Iterator[Cuda]:
    yield Cuda(cudart._declare(library))
    assert library.fake_last() == 0


def array_at(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def call_every_function(cuda: Cuda) -> np.ndarray:
    """Call every function, free everything, and return an array that went to the device and back."""
    cuda.devices()
    cuda.gpu()
    stream = cuda.create_stream()
    buffer, pinned = cuda.allocate(64, "buffer"), cuda.allocate_pinned(64, "pinned")
    array_at(pinned, 64)[...] = np.arange(64)
    cuda.to_device(buffer, pinned, 64, stream)
    cuda.synchronize(stream)
    array_at(pinned, 64)[...] = 0
    cuda.begin_capture(stream)
    cuda.to_host(pinned, buffer, 64, stream)
    graph = cuda.end_capture(stream)
    cuda.to_host(pinned, buffer, 64, stream)
    cuda.launch(graph, stream)
    cuda.synchronize(stream)
    copied = array_at(pinned, 64).copy()
    cuda.destroy_graph(graph)
    cuda.free_pinned(pinned)
    cuda.free(buffer)
    cuda.destroy_stream(stream)
    return copied


def test_copies_round_trip_and_nothing_leaks(cuda, library):
    np.testing.assert_array_equal(call_every_function(cuda), np.arange(64))
    assert library.fake_live() == 0


def test_gpu_returns_name_capability_and_memory(cuda):
    assert cuda.gpu() == Gpu("Orin", (8, 7), 8, True, 1 << 20, 1 << 20)
    cuda.allocate(1 << 18, "a quarter")
    assert cuda.memory() == (3 << 18, 1 << 20)


CHECKED_FUNCTIONS = [name for name in cudart.FUNCTIONS if name != "cudaGetLastError"]


@pytest.mark.parametrize(
    ("code", "reason"), [(700, "cudaErrorIllegalAddress: an illegal memory access"), (999, "Unknown")]
)
@pytest.mark.parametrize("name", CHECKED_FUNCTIONS)
def test_nonzero_return_code_is_an_error(cuda, library, name, code, reason):
    library.fake_fail(name.encode(), code)
    with pytest.raises(NotTestedError, match=f"CUDA failed in {name}: .*{reason}.*; run: edge-attn doctor") as caught:
        call_every_function(cuda)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("name", "label"), [("allocate", "log_probs"), ("allocate_pinned", "the transfer buffer")])
def test_out_of_memory_error_contains_sizes(cuda, library, name, label):
    cuda.allocate(600 << 10, "most of it")
    library.fake_fail(b"cudaMallocHost", 2)
    with pytest.raises(NotTestedError) as caught:
        getattr(cuda, name)(1 << 19, label)
    assert str(caught.value) == (
        f"the GPU has too little memory: {label}{' (pinned)' * (name != 'allocate')} needs 0.5 MiB, 0.4 MiB of 1.0 MiB "
        f"are free; close other programs that use it, or choose smaller buckets"
    )


def test_graph_that_cannot_be_instantiated_is_destroyed(cuda, library):
    stream = cuda.create_stream()
    library.fake_fail(b"cudaGraphInstantiateWithFlags", 999)
    cuda.begin_capture(stream)
    with pytest.raises(NotTestedError, match="cudaGraphInstantiateWithFlags"):
        cuda.end_capture(stream)
    assert library.fake_live() == 1


@pytest.mark.parametrize("code", [0, 700])
def test_abandoned_capture_leaks_nothing(cuda, library, code):
    stream = cuda.create_stream()
    cuda.begin_capture(stream)
    library.fake_fail(b"cudaStreamEndCapture", code)
    cuda.abandon_capture(stream)
    assert library.fake_live() == 1
    cuda.synchronize(stream)


def test_missing_function_names_the_expected_cuda(cuda):
    class OldLibrary:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    with pytest.raises(NotTestedError, match=r"this libcudart has no cudaMemGetInfo; expected CUDA 11.8"):
        Cuda(OldLibrary()).memory()


# ---- search for the library


@pytest.fixture
def search_paths(monkeypatch) -> Iterator[list[str]]:
    """Return the list of paths that are tried."""
    names: list[str] = []
    monkeypatch.setattr(cudart, "libcudart_paths", lambda: iter(names))
    return names


def test_missing_libcudart_names_the_next_command(search_paths):
    search_paths += ["libcudart.so.99"]
    with pytest.raises(NotTestedError, match=r"CUDA is not here.*apt-get install nvidia-jetpack.*edge-attn doctor"):
        open_cuda()


def test_library_without_device_is_skipped(search_paths, library, library_path):
    search_paths += [library._name]
    library.fake_fail(b"cudaGetDeviceCount", 999)
    with pytest.raises(NotTestedError, match=r"no NVIDIA GPU that CUDA can use here: .*cudaErrorUnknown.*doctor"):
        open_cuda()
    search_paths += ["libcudart.so.99", str(library_path)]
    assert open_cuda().gpu().name == "Orin"


def test_libcudart_paths_are_loader_toolkits_wheels(monkeypatch, tmp_path):
    wheel = tmp_path / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    toolkits = [tmp_path / f"usr/local/{name}/lib64/libcudart.so.12" for name in ("cuda", "cuda-12.8", "cuda-12.6")]
    for toolkit in toolkits:
        toolkit.parent.mkdir(parents=True)
        toolkit.touch()
    paths = list(cudart.libcudart_paths(tmp_path))
    assert paths[:4] == ["libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so"]
    assert paths[4:7] == list(map(str, toolkits))
    assert str(wheel) in paths
    assert probes.libcudart_paths is cudart.libcudart_paths


def test_installed_libcudart_has_every_function():
    for name in cudart.libcudart_paths():
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        functions = (*cudart.FUNCTIONS, *cudart.ERROR_TEXT_FUNCTIONS)
        assert [function for function in functions if not hasattr(library, function)] == [], name


@pytest.mark.parametrize(
    ("number", "failed", "expected"), [(13020, 0, (13, 2)), (12060, 0, (12, 6)), (0, 0, None), (0, 35, None)]
)
def test_driver_cuda_returns_the_driver_version(monkeypatch, tmp_path, number, failed, expected):
    compiler = shutil.which("gcc") or pytest.skip("needs a C compiler")
    code, library = tmp_path / "driver.c", tmp_path / "libcuda.so"
    code.write_text(f"int cuDriverGetVersion(int* version) {{ *version = {number}; return {failed}; }}\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(code)], check=True, timeout=60)
    monkeypatch.setattr(cudart, "DRIVER", str(library))
    assert cudart.driver_cuda() == expected
    monkeypatch.setattr(cudart, "DRIVER", "missing-libcuda.so")
    assert cudart.driver_cuda() is None


@pytest.mark.gpu
def test_copies_round_trip_on_a_gpu(needs_gpu):
    cuda = open_cuda()
    gpu = cuda.gpu()
    assert gpu.name
    assert gpu.compute_capability >= (5, 0)
    assert 0 < gpu.free <= gpu.total
    np.testing.assert_array_equal(call_every_function(cuda), np.arange(64))
    with pytest.raises(NotTestedError, match="the GPU has too little memory: everything needs"):
        cuda.allocate(2 * gpu.total, "everything")
    cuda.gpu()
