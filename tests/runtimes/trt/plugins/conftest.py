"""Compile additive_attention.cu for the CPU, behind a fake driver (fake_driver.cpp) for cuda_kernels.py."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Callable

import pytest
from paths import TESTS

from edge_attn.runtimes.trt.plugins.additive_attention import SOURCE

HERE = TESTS / "support" / "plugins"
Compile = Callable[[str], ctypes.CDLL]


@pytest.fixture(scope="session")
def compile_for_cpu(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Return a function from a source to the fake driver with its kernels, whose `path` is for Gpu(library=...)."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs g++")
    libraries: dict[str, ctypes.CDLL] = {}

    def compile_source(source: str) -> ctypes.CDLL:
        key = hashlib.sha256(source.encode()).hexdigest()
        if key not in libraries:
            folder = tmp_path_factory.mktemp("kernel")
            (folder / SOURCE.name).write_text(source, encoding="utf-8")
            flags = ["-std=c++17", "-O1", "-fPIC", "-shared"]
            command = [compiler, *flags, f"-I{folder}", f"-I{HERE}", "-o", str(folder / "libcuda.so")]
            subprocess.run([*command, str(HERE / "fake_driver.cpp")], check=True, timeout=120)
            libraries[key] = ctypes.CDLL(str(folder / "libcuda.so"))
            libraries[key].path = str(folder / "libcuda.so")
            libraries[key].half_to_float.restype = ctypes.c_float
            libraries[key].float_to_half.argtypes = (ctypes.c_float,)
            libraries[key].fake_races.restype = ctypes.c_long
        return libraries[key]

    return compile_source


@pytest.fixture(scope="session")
def cpu(compile_for_cpu: Compile) -> ctypes.CDLL:
    """Kernels without a change."""
    return compile_for_cpu(SOURCE.read_text(encoding="utf-8"))
