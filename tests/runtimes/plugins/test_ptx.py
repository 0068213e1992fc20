"""The kernel as PTX: nvcc and NVRTC make it for every board, ptxas assembles it, and no compiler is a sentence."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_attn.errors import NotTestedError
from runtimes.plugins import ptx as module
from runtimes.plugins.additive_attention import KERNELS, SOURCE
from runtimes.plugins.ptx import compile_ptx, find_nvcc, find_nvrtc, with_nvcc, with_nvrtc

ARCHITECTURES = {"sm_87": "Orin", "sm_90": "Hopper", "sm_110": "Thor"}
COMPILERS = {"nvcc": (find_nvcc, with_nvcc), "NVRTC": (find_nvrtc, with_nvrtc)}
ARGUMENTS = ["u64"] * 5 + ["u32"] * 4 + ["u64"] * 2
"""Inputs, sizes, outputs: what TensorRT passes."""


@pytest.fixture(params=COMPILERS)
def compiler(request):
    """compiler(source, architecture) -> PTX"""
    find, compile_with = COMPILERS[request.param]
    found = find()
    if found is None:
        pytest.skip(f"needs {request.param}")
    return lambda source, architecture: compile_with(found, source, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_kernels_compile_and_assemble(compiler, architecture, tmp_path):
    made = compiler(SOURCE.read_text(encoding="utf-8"), architecture)
    text = made.decode("ascii")
    assert re.search(rf"^\.target {architecture}$", text, re.MULTILINE)
    for kernel in KERNELS.values():
        (declared,) = re.findall(rf"\.entry {kernel}\((.*?)\)", text, re.DOTALL)
        assert re.findall(r"\.param \.(\w+)", declared) == ARGUMENTS
    nvcc = find_nvcc()
    assembler = shutil.which("ptxas") or (nvcc and shutil.which("ptxas", path=str(nvcc.resolve().parent)))
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


def test_without_a_compiler_the_sentence_names_both(bare):
    with pytest.raises(
        NotTestedError, match=r"neither nvcc .* nor libnvrtc .* pip install nvidia-cuda-nvrtc"
    ) as caught:
        compile_ptx("", "sm_87")
    assert caught.value.exit_code == 3


def test_a_toolkit_is_found_by_cuda_home(bare, monkeypatch):
    (bare / "toolkit/bin").mkdir(parents=True)
    (bare / "toolkit/bin/nvcc").touch(mode=0o755)
    assert find_nvcc() is None
    monkeypatch.setenv("CUDA_HOME", str(bare / "toolkit"))
    assert find_nvcc() == bare / "toolkit/bin/nvcc"
