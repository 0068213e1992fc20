"""The kernel as PTX: NVRTC and nvcc compile it for every board, ptxas assembles it; a failure is one sentence."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_attn.errors import NotTestedError
from edge_attn.runtimes.trt.plugins import ptx as module
from edge_attn.runtimes.trt.plugins.additive_attention import KERNELS, SOURCE
from edge_attn.runtimes.trt.plugins.ptx import (
    compile_ptx,
    compile_with_nvcc,
    compile_with_nvrtc,
    find_nvcc,
    load_nvrtc,
    newest_ptx,
)

ARCHITECTURES = {"sm_87": "Orin", "sm_90": "Hopper", "sm_110": "Thor"}
COMPILERS = {
    "NVRTC": lambda: [partial(compile_with_nvrtc, nvrtc) for nvrtc in [load_nvrtc()] if nvrtc],
    "nvcc": lambda: [partial(compile_with_nvcc, path) for path in [find_nvcc()] if path],
}
ARGUMENTS = ["u64"] * 5 + ["u32"] * 4 + ["u64"] * 2
"""Inputs, sizes, outputs: the arguments that TensorRT passes."""


@pytest.fixture(params=COMPILERS)
def compile_source(request):
    """Return a function (source, architecture) -> PTX."""
    available = COMPILERS[request.param]()
    if not available:
        pytest.skip(f"needs {request.param}")
    return available[0]


def ptxas() -> str:
    folders = [None, *(str(Path(nvcc).resolve().parent) for nvcc in [find_nvcc()] if nvcc)]
    path = next(filter(None, (shutil.which("ptxas", path=folder) for folder in folders)), None)
    return path or pytest.skip("needs nvcc: it brings ptxas")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_kernels_compile_and_assemble(compile_source, architecture, tmp_path):
    ptx = compile_source(SOURCE.read_text(encoding="utf-8"), architecture)
    text = ptx.decode("ascii")
    assert re.search(rf"^\.target {architecture}$", text, re.MULTILINE)
    for kernel in KERNELS.values():
        (declared,) = re.findall(rf"\.entry {kernel}\((.*?)\)", text, re.DOTALL)
        assert re.findall(r"\.param \.(\w+)", declared) == ARGUMENTS
    assembler = ptxas()
    (tmp_path / "kernel.ptx").write_bytes(ptx)
    run = [assembler, "-v", f"-arch={architecture}", "kernel.ptx", "-o", "kernel.cubin"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert {*re.findall(r"(\d+) bytes spill", output)} == {"0"}
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", output)]
    shared = [int(number) for number in re.findall(r"(\d+) bytes smem", output)]
    assert len(registers) == len(shared) == len(KERNELS)
    assert max(registers) <= 64, "with 64, four blocks of 256 threads fit on a multiprocessor"
    assert max(shared) <= 2048


def test_wrong_source_is_a_sentence(compile_source):
    with pytest.raises(NotTestedError, match=r"writes no PTX for sm_87: kernel\.cu\(1\): error: ") as caught:
        compile_source("nonsense;", "sm_87")
    assert "\n" not in str(caught.value)


def test_unknown_architecture_is_a_sentence(compile_source):
    with pytest.raises(NotTestedError, match="writes no PTX for sm_12345: "):
        compile_source("", "sm_12345")


@pytest.fixture
def bare(monkeypatch, tmp_path) -> Path:
    """Empty folder of a machine without CUDA."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(module, "TOOLKIT", tmp_path)
    monkeypatch.setattr(module, "load_nvrtc", lambda: None)
    return tmp_path


INSTALLS = {
    None: "pip install cuda-bindings nvidia-cuda-nvrtc",
    (12, 6): "pip install 'cuda-bindings<13' 'nvidia-cuda-nvrtc-cu12<12.7'",
    (13, 0): "pip install 'cuda-bindings<14' 'nvidia-cuda-nvrtc<13.1'",
    (13, 2): "pip install 'cuda-bindings<14' 'nvidia-cuda-nvrtc<13.3'",
}


@pytest.mark.parametrize("driver", INSTALLS)
def test_missing_compiler_names_the_one_that_fits_the_driver(bare, monkeypatch, driver):
    monkeypatch.setattr(module, "driver_cuda", lambda: driver)
    with pytest.raises(NotTestedError, match=r"neither NVRTC \(.*nvidia-cuda-nvrtc\) nor nvcc \(.*CUDA_HOME") as caught:
        compile_ptx("", "sm_87")
    assert caught.value.exit_code == 3
    assert str(caught.value).endswith(f"; run: {INSTALLS[driver]}")


def test_cuda_home_names_a_toolkit(bare, monkeypatch):
    nvcc(bare / "toolkit", "")
    assert find_nvcc() is None
    monkeypatch.setenv("CUDA_HOME", str(bare / "toolkit"))
    assert find_nvcc() == str(bare / "toolkit/bin/nvcc")


def test_usual_toolkit_is_searched_without_cuda_home(bare):
    assert find_nvcc() is None
    path = nvcc(bare, "")
    assert find_nvcc() == str(path)


# ---- both compilers, and the driver


def nvcc(folder: Path, script: str) -> Path:
    """Write an nvcc that runs `script` in the shell; $output is the file that it must write."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; output=$2\n{script}\n')
    path.chmod(0o755)
    return path


def writes(version: str) -> str:
    return f"echo '//\n.version {version}\n.target sm_87' >$output"


@pytest.fixture
def toolkit(bare, monkeypatch):
    """Return a function that installs an nvcc with this script; one that sleeps reaches its time limit at once."""
    run = subprocess.run

    def impatient(command, **options):
        if Path(command[0]).read_text().endswith("\nsleep\n"):
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return run(command, **options)

    monkeypatch.setattr(module.subprocess, "run", impatient)

    def install(script: str) -> None:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        nvcc(bare, script)

    return install


FAILS = {
    "refuses": (
        "echo 'kernel.cu(1): error: no headers' >&2; exit 1",
        r"no PTX for sm_87: kernel\.cu\(1\): error: no h",
    ),
    "writes nothing": ("exit 0", r"writes no PTX for sm_87: it does not run: .*No such file"),
    "prints no text": (
        "printf '\\377' >&2; exit 1",
        "writes no PTX for sm_87: \N{REPLACEMENT CHARACTER}",
    ),
    "takes too long": ("sleep", "writes no PTX for sm_87: it took longer than 300 seconds"),
    "is too new": (
        writes("9.2"),
        r"writes PTX 9\.2, and this machine's driver, of CUDA 13\.0, takes up to 9\.0; run: pip ",
    ),
}


@pytest.mark.parametrize("what", FAILS)
def test_failure_of_nvcc_is_raised(toolkit, monkeypatch, what):
    monkeypatch.setattr(module, "driver_cuda", lambda: (13, 0))
    script, reason = FAILS[what]
    toolkit(script)
    with pytest.raises(NotTestedError, match=reason):
        compile_ptx("", "sm_87")


def test_nvcc_that_does_not_run_is_a_sentence(bare):
    nvcc(bare, "").write_bytes(b"\x7fELF")
    with pytest.raises(NotTestedError, match=r"writes no PTX for sm_87: it does not run: .*Exec format error"):
        compile_ptx("", "sm_87")


def fake_nvrtc(version: str) -> SimpleNamespace:
    ptx = f".version {version}\n.target sm_87\0".encode()

    def write(program: object, buffer: bytes) -> tuple[int]:
        ctypes.memmove(buffer, ptx, len(ptx))
        return (0,)

    return SimpleNamespace(
        nvrtcCreateProgram=lambda *arguments: (0, "program"),
        nvrtcCompileProgram=lambda *arguments: (0,),
        nvrtcGetPTXSize=lambda program: (0, len(ptx)),
        nvrtcGetPTX=write,
        nvrtcDestroyProgram=lambda program: (0,),
    )


@pytest.mark.parametrize(("nvrtc", "expected"), [("9.0", b".version 9.0"), ("9.2", b".version 8.8")])
def test_nvrtc_is_first_and_nvcc_second(toolkit, monkeypatch, nvrtc, expected):
    monkeypatch.setattr(module, "driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(module, "load_nvrtc", lambda: fake_nvrtc(nvrtc))
    toolkit(writes("8.8"))
    assert expected in compile_ptx("", "sm_87")


def test_nvcc_compiles_where_nvrtc_fails(toolkit, monkeypatch):
    nvrtc = fake_nvrtc("9.0")
    nvrtc.nvrtcCompileProgram = lambda *arguments: (SimpleNamespace(name="NVRTC_ERROR_COMPILATION"),)
    nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog = lambda program: (0, 0), lambda program, log: (0,)
    monkeypatch.setattr(module, "load_nvrtc", lambda: nvrtc)
    toolkit(writes("8.8"))
    assert b".version 8.8" in compile_ptx("", "sm_87")


@pytest.mark.parametrize("error", [ImportError("no cuda.bindings"), RuntimeError("no libnvrtc")])
def test_nvrtc_that_does_not_load_is_no_compiler(monkeypatch, error):
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=fail))
    assert load_nvrtc() is None


def test_without_cuda_bindings_there_is_no_nvrtc(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.delitem(sys.modules, "cuda.bindings.nvrtc", raising=False)
    assert load_nvrtc() is None


DRIVERS = {  # CUDA: the newest PTX, by the release notes of the PTX ISA
    (11, 4): (7, 4),
    (12, 0): (8, 0),
    (12, 5): (8, 5),
    (12, 6): (8, 5),
    (12, 8): (8, 7),
    (12, 9): (8, 8),
    (13, 0): (9, 0),
    (13, 2): (9, 2),
    (14, 0): None,
}


@pytest.mark.parametrize("cuda", DRIVERS)
def test_newest_ptx_of_a_driver(toolkit, monkeypatch, cuda):
    newest = newest_ptx(cuda)
    assert newest == DRIVERS[cuda]
    monkeypatch.setattr(module, "driver_cuda", lambda: cuda)
    toolkit(writes("{}.{}".format(*(newest or (77, 7)))))
    assert b".target sm_87" in compile_ptx("", "sm_87")


def test_compiler_writes_ptx_that_a_driver_of_its_cuda_takes(compile_source):
    ptx = compile_source(SOURCE.read_text(encoding="utf-8"), "sm_87").decode()
    major, minor = map(int, re.findall(r"(?i)CUDA compilation tools, release (\d+)\.(\d+)", ptx)[0])
    version = re.findall(r"^\.version (\d+)\.(\d+)$", ptx, re.MULTILINE)[0]
    assert tuple(map(int, version)) == newest_ptx((major, minor))
