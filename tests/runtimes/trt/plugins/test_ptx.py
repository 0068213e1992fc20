"""The kernel as PTX: nvcc and NVRTC make it for every board, ptxas assembles it, and no compiler is a sentence."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_attn.errors import NotTestedError
from edge_attn.runtimes.trt.plugins import ptx as module
from edge_attn.runtimes.trt.plugins.additive_attention import KERNELS, SOURCE
from edge_attn.runtimes.trt.plugins.ptx import (
    compile_ptx,
    driver_cuda,
    newest_ptx,
    nvccs,
    nvrtcs,
    with_nvcc,
    with_nvrtc,
)

ARCHITECTURES = {"sm_87": "Orin", "sm_90": "Hopper", "sm_110": "Thor"}
COMPILERS = {"nvcc": (nvccs, with_nvcc), "NVRTC": (nvrtcs, with_nvrtc)}
ARGUMENTS = ["u64"] * 5 + ["u32"] * 4 + ["u64"] * 2
"""Inputs, sizes, outputs: what TensorRT passes."""


@pytest.fixture(params=COMPILERS)
def compiler(request):
    """compiler(source, architecture) -> PTX"""
    find, compile_with = COMPILERS[request.param]
    found = find()
    if not found:
        pytest.skip(f"needs {request.param}")
    return lambda source, architecture: compile_with(found[0], source, architecture)


def places_of_ptxas() -> list[str | None]:
    return [None, *(str(nvcc.resolve().parent) for nvcc in nvccs())]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_kernels_compile_and_assemble(compiler, architecture, tmp_path):
    made = compiler(SOURCE.read_text(encoding="utf-8"), architecture)
    text = made.decode("ascii")
    assert re.search(rf"^\.target {architecture}$", text, re.MULTILINE)
    for kernel in KERNELS.values():
        (declared,) = re.findall(rf"\.entry {kernel}\((.*?)\)", text, re.DOTALL)
        assert re.findall(r"\.param \.(\w+)", declared) == ARGUMENTS
    assembler = next(filter(None, (shutil.which("ptxas", path=path) for path in places_of_ptxas())), None)
    if not assembler:
        pytest.skip("needs nvcc: it brings ptxas")
    (tmp_path / "kernel.ptx").write_bytes(made)
    run = [assembler, "-v", f"-arch={architecture}", "kernel.ptx", "-o", "kernel.cubin"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert {*re.findall(r"(\d+) bytes spill", said)} == {"0"}
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", said)]
    shared = [int(number) for number in re.findall(r"(\d+) bytes smem", said)]
    assert len(registers) == len(shared) == len(KERNELS)
    assert max(registers) <= 64, "with 64, four blocks of 256 threads fit on a multiprocessor"
    assert max(shared) <= 2048


def test_a_source_that_is_wrong_is_a_sentence(compiler):
    with pytest.raises(NotTestedError, match=r"makes no PTX for sm_87: kernel\.cu\(1\): error: ") as caught:
        compiler("nonsense;", "sm_87")
    assert "\n" not in str(caught.value)


def test_an_architecture_that_it_does_not_know_is_a_sentence(compiler):
    with pytest.raises(NotTestedError, match="makes no PTX for sm_12345: "):
        compiler("", "sm_12345")


@pytest.fixture
def bare(monkeypatch, tmp_path) -> Path:
    """A machine without CUDA; its empty folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(module, "TOOLKIT", tmp_path)
    monkeypatch.setattr(module, "NVRTC_NAMES", ("libnvrtc-that-is-not-there.so",))
    monkeypatch.setattr(module.util, "find_spec", lambda name: None)
    return tmp_path


INSTALLS = {
    None: "pip install nvidia-cuda-nvrtc",
    (12, 6): "pip install 'nvidia-cuda-nvrtc-cu12<12.7'",
    (13, 0): "pip install 'nvidia-cuda-nvrtc<13.1'",
    (13, 2): "pip install 'nvidia-cuda-nvrtc<13.3'",
}


@pytest.mark.parametrize("driver", INSTALLS)
def test_without_a_compiler_the_sentence_names_both_and_the_one_for_the_driver(bare, monkeypatch, driver):
    monkeypatch.setattr(module, "driver_cuda", lambda: driver)
    with pytest.raises(NotTestedError, match=r"neither nvcc .* nor libnvrtc .*nvidia-cuda-nvrtc\)") as caught:
        compile_ptx("", "sm_87")
    assert caught.value.exit_code == 3
    assert str(caught.value).endswith(f"; run: {INSTALLS[driver]}")


def test_a_toolkit_is_found_by_cuda_home(bare, monkeypatch):
    nvcc(bare / "toolkit", "")
    assert nvccs() == []
    monkeypatch.setenv("CUDA_HOME", str(bare / "toolkit"))
    assert nvccs() == [bare / "toolkit/bin/nvcc"]


# ---- several compilers, and the driver


def nvcc(folder: Path, does: str) -> Path:
    """An nvcc that does that, in the shell; $made is the file that is asked for."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; made=$2\n{does}\n')
    path.chmod(0o755)
    return path


def makes(version: str) -> str:
    return f"echo '//\n.version {version}\n.target sm_87' >$made"


@pytest.fixture
def toolkits(bare, monkeypatch):
    """toolkits(first, second): what the nvcc under CUDA_HOME does, and the one in the toolkit's usual place; one that
    sleeps is given up at once."""
    run = subprocess.run

    def impatient(command, **options):
        if Path(command[0]).read_text().endswith("\nsleep\n"):
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return run(command, **options)

    monkeypatch.setattr(module.subprocess, "run", impatient)

    def make(*does: str) -> None:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        for variable, folder, what in zip(
            ("CUDA_HOME", "TOOLKIT"), (bare / "home", bare / "usual"), does, strict=False
        ):
            nvcc(folder, what)
            if variable == "TOOLKIT":
                monkeypatch.setattr(module, "TOOLKIT", folder)
            else:
                monkeypatch.setenv(variable, str(folder))

    return make


FAILS = {
    "refuses": (
        "echo 'kernel.cu(1): error: no headers' >&2; exit 1",
        r"no PTX for sm_87: kernel\.cu\(1\): error: no h",
    ),
    "makes nothing": ("exit 0", r"makes no PTX for sm_87: it does not run: .*No such file"),
    "says what is no text": ("printf '\\377' >&2; exit 1", "makes no PTX for sm_87: it does not run: .*decode"),
    "takes too long": ("sleep", "makes no PTX for sm_87: it took longer than 300 seconds"),
    "is too new": (
        makes("9.2"),
        r"makes PTX 9\.2, and this machine's driver, of CUDA 13\.0, takes up to 9\.0; run: pip ",
    ),
}


@pytest.mark.parametrize("what", FAILS)
def test_a_compiler_that_fails_hides_no_other(toolkits, monkeypatch, what):
    monkeypatch.setattr(module, "driver_cuda", lambda: (13, 0))
    toolkits(FAILS[what][0], makes("9.0"))
    assert b".version 9.0" in compile_ptx("", "sm_87")


@pytest.mark.parametrize("what", FAILS)
def test_where_all_compilers_fail_the_last_one_is_heard(toolkits, monkeypatch, what):
    monkeypatch.setattr(module, "driver_cuda", lambda: (13, 0))
    does, said = FAILS[what]
    toolkits("exit 1", does)
    with pytest.raises(NotTestedError, match=said):
        compile_ptx("", "sm_87")


def test_an_nvcc_that_does_not_run_and_an_nvrtc_that_is_none(bare, monkeypatch):
    nvcc(bare, "").write_bytes(b"\x7fELF")
    with pytest.raises(NotTestedError, match=r"makes no PTX for sm_87: it does not run: .*Exec format error"):
        compile_ptx("", "sm_87")
    (bare / "libnvrtc.so").write_bytes(b"\x7fELF")
    with pytest.raises(NotTestedError, match="makes no PTX for sm_87: it does not load: "):
        with_nvrtc(bare / "libnvrtc.so", "", "sm_87")
    monkeypatch.setattr(module, "NVRTC_NAMES", ("libc.so.6",))
    with pytest.raises(NotTestedError, match=r"libc\.so\.6 makes no PTX for sm_87: it does not load: .*nvrtc"):
        compile_ptx("", "sm_87")


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
def test_the_newest_ptx_of_a_driver(toolkits, monkeypatch, cuda):
    newest = newest_ptx(cuda)
    assert newest == DRIVERS[cuda]
    monkeypatch.setattr(module, "driver_cuda", lambda: cuda)
    toolkits(makes("{}.{}".format(*(newest or (77, 7)))))
    assert b".target sm_87" in compile_ptx("", "sm_87")


@pytest.mark.parametrize(
    ("number", "failed", "expected"), [(13020, 0, (13, 2)), (12060, 0, (12, 6)), (0, 0, None), (0, 35, None)]
)
def test_the_driver_says_its_cuda(monkeypatch, tmp_path, number, failed, expected):
    compiler = shutil.which("gcc") or pytest.skip("needs g++")
    code, made = tmp_path / "driver.c", tmp_path / "libcuda.so"
    code.write_text(f"int cuDriverGetVersion(int* version) {{ *version = {number}; return {failed}; }}\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(code)], check=True, timeout=60)
    monkeypatch.setattr(module, "DRIVER", str(made))
    assert driver_cuda() == expected
    monkeypatch.setattr(module, "DRIVER", "libcuda-that-is-not-there.so")
    assert driver_cuda() is None


def test_real_compilers_make_what_a_driver_of_their_cuda_takes(compiler):
    made = compiler(SOURCE.read_text(encoding="utf-8"), "sm_87")
    major, minor = map(int, re.findall(r"(?i)CUDA compilation tools, release (\d+)\.(\d+)", made.decode())[0])
    version = re.findall(r"^\.version (\d+)\.(\d+)$", made.decode(), re.MULTILINE)[0]
    assert tuple(map(int, version)) == newest_ptx((major, minor))
