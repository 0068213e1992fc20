"""CUDA through ctypes, on a libcudart over the host's memory (fake_cudart.c), and on a GPU where there is one."""

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
from edge_attn.runtimes.doctor import probes as doctor_probes
from edge_attn.runtimes.trt import cudart as cuda
from edge_attn.runtimes.trt.cudart import Cuda, Gpu, open_cuda

SOURCE = TESTS / "support" / "fake_cudart.c"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("cudart") / "libcudart.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-Werror", "-Wall", "-o", library, SOURCE], check=True)
    return library


@pytest.fixture
def library(built, tmp_path) -> ctypes.CDLL:
    """A library of the test's own, since it remembers what it gave."""
    return ctypes.CDLL(str(shutil.copy(built, tmp_path / "libcudart.so")))


@pytest.fixture
def opened(library) -> Iterator[Cuda]:
    yield Cuda(cuda._typed(library))
    assert library.fake_last() == 0


def array_at(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def everything(opened: Cuda) -> np.ndarray:
    """Calls every function once or more, and gives back what it took. What went to the device and back."""
    opened.devices()
    opened.gpu()
    stream = opened.create_stream()
    there, pinned = opened.allocate(64, "there"), opened.allocate_pinned(64, "pinned")
    array_at(pinned, 64)[...] = np.arange(64)
    opened.to_device(there, pinned, 64, stream)
    opened.synchronize(stream)
    array_at(pinned, 64)[...] = 0
    opened.begin_capture(stream)
    opened.to_host(pinned, there, 64, stream)
    graph = opened.end_capture(stream)
    opened.to_host(pinned, there, 64, stream)
    opened.launch(graph, stream)
    opened.synchronize(stream)
    came_back = array_at(pinned, 64).copy()
    opened.destroy_graph(graph)
    opened.free_pinned(pinned)
    opened.free(there)
    opened.destroy_stream(stream)
    return came_back


def test_what_goes_to_the_device_comes_back_and_all_is_given_back(opened, library):
    np.testing.assert_array_equal(everything(opened), np.arange(64))
    assert library.fake_live() == 0


def test_the_device(opened):
    assert opened.gpu() == Gpu("Orin", (8, 7), 8, True, 1 << 20, 1 << 20)
    opened.allocate(1 << 18, "a quarter")
    assert opened.memory() == (3 << 18, 1 << 20)


CHECKED = [name for name in cuda.FUNCTIONS if name != "cudaGetLastError"]


@pytest.mark.parametrize(
    ("code", "said"), [(700, "cudaErrorIllegalAddress: an illegal memory access"), (999, "Unknown")]
)
@pytest.mark.parametrize("name", CHECKED)
def test_every_return_code_that_is_not_0_is_an_error(opened, library, name, code, said):
    library.fake_fail(name.encode(), code)
    with pytest.raises(NotTestedError, match=f"CUDA failed in {name}: .*{said}.*; run: edge-attn doctor") as caught:
        everything(opened)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("name", "kind"), [("allocate", "the log-probabilities"), ("allocate_pinned", "the way back")])
def test_out_of_memory_is_a_sentence(opened, library, name, kind):
    opened.allocate(600 << 10, "most of it")
    library.fake_fail(b"cudaMallocHost", 2)
    with pytest.raises(NotTestedError) as caught:
        getattr(opened, name)(1 << 19, kind)
    assert str(caught.value) == (
        f"the GPU has too little memory: {kind}{' (pinned)' * (name != 'allocate')} needs 0.5 MiB, 0.4 MiB of 1.0 MiB "
        f"are free; close what else uses it, or choose smaller buckets"
    )


def test_a_graph_that_cannot_be_instantiated_is_given_back(opened, library):
    stream = opened.create_stream()
    library.fake_fail(b"cudaGraphInstantiateWithFlags", 999)
    opened.begin_capture(stream)
    with pytest.raises(NotTestedError, match="cudaGraphInstantiateWithFlags"):
        opened.end_capture(stream)
    assert library.fake_live() == 1


@pytest.mark.parametrize("code", [0, 700])
def test_a_capture_that_is_abandoned_leaves_nothing(opened, library, code):
    stream = opened.create_stream()
    opened.begin_capture(stream)
    library.fake_fail(b"cudaStreamEndCapture", code)
    opened.abandon_capture(stream)
    assert library.fake_live() == 1
    opened.synchronize(stream)


def test_a_libcudart_without_a_function(opened):
    class Old:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    with pytest.raises(NotTestedError, match=r"this libcudart has no cudaMemGetInfo; expected CUDA 11.8"):
        Cuda(Old()).memory()


# ---- which library


@pytest.fixture
def only(monkeypatch) -> Iterator[list[str]]:
    """The libraries that are looked for."""
    names: list[str] = []
    monkeypatch.setattr(cuda, "_candidates", lambda: iter(names))
    return names


def test_no_library_is_a_sentence_with_the_next_command(only):
    only += ["libcudart.so.99"]
    with pytest.raises(NotTestedError, match=r"CUDA is not here.*apt-get install nvidia-jetpack.*edge-attn doctor"):
        open_cuda()


def test_a_library_without_a_device(only, library, built):
    only += [library._name]
    library.fake_fail(b"cudaGetDeviceCount", 999)
    with pytest.raises(NotTestedError, match=r"no NVIDIA GPU that CUDA can use here: .*cudaErrorUnknown.*doctor"):
        open_cuda()
    only += ["libcudart.so.99", str(built)]
    assert cuda.device().name == "Orin"


def test_where_it_is_looked_for(monkeypatch, tmp_path):
    wheel = tmp_path / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    toolkits = [tmp_path / f"usr/local/{name}/lib64/libcudart.so.12" for name in ("cuda", "cuda-12.8", "cuda-12.6")]
    for toolkit in toolkits:
        toolkit.parent.mkdir(parents=True)
        toolkit.touch()
    found = list(cuda._candidates(tmp_path))
    assert found[:4] == ["libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so"]
    assert found[4:7] == list(map(str, toolkits))
    assert str(wheel) in found
    assert doctor_probes.candidates is cuda._candidates


def test_the_real_library_has_every_function():
    for name in cuda._candidates():
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        assert [function for function in (*cuda.FUNCTIONS, *cuda.WORDS) if not hasattr(library, function)] == [], name


@pytest.mark.gpu
def test_on_a_gpu(needs_gpu):
    opened = open_cuda()
    gpu = opened.gpu()
    assert gpu.name
    assert gpu.compute_capability >= (5, 0)
    assert 0 < gpu.free <= gpu.total
    np.testing.assert_array_equal(everything(opened), np.arange(64))
    with pytest.raises(NotTestedError, match="the GPU has too little memory: everything needs"):
        opened.allocate(2 * gpu.total, "everything")
    opened.gpu()
