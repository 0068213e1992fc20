"""CUDA source to PTX for one GPU architecture, with NVRTC (through the package cuda-bindings) or else with nvcc.

PTX of one CUDA needs a driver of that CUDA or of a newer one, minor version and all: a driver of CUDA 13.0 takes no PTX
of 13.2. So nvcc is tried too if the PTX of NVRTC is newer than the driver.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from edge_attn.errors import NotTestedError
from edge_attn.runtimes.trt.cudart import driver_cuda

TOOLKIT = Path("/usr/local/cuda")
"""Folder of JetPack's toolkit, which neither PATH nor CUDA_HOME names."""
SECONDS = 300
"""Time limit of nvcc."""
Version: TypeAlias = tuple[int, int]
Compile: TypeAlias = Callable[[str, str], bytes]
"""compile(source, architecture) -> PTX"""


def compile_ptx(source: str, architecture: str) -> bytes:
    """Return PTX of `source` for `architecture`, as "sm_87", that this machine's driver takes.

    Raises:
        NotTestedError: there is no compiler, or each of them fails; the sentence is that of the last.
    """
    driver = driver_cuda()
    newest = newest_ptx(driver) if driver else None
    failure = (
        "a plugin needs a CUDA compiler, and there is none: neither NVRTC (the packages cuda-bindings and "
        f"nvidia-cuda-nvrtc) nor nvcc (on PATH or under CUDA_HOME); run: {_install(driver)}"
    )
    for name, compile_source in compilers().items():
        try:
            ptx = compile_source(source, architecture)
        except NotTestedError as error:
            failure = str(error)
            continue
        declared = re.search(rb"^\.version\s+(\d+)\.(\d+)", ptx, re.MULTILINE)
        if not (declared and driver and newest) or (int(declared[1]), int(declared[2])) <= newest:
            return ptx
        failure = (
            f"{name} writes PTX {int(declared[1])}.{int(declared[2])}, and this machine's driver, of CUDA "
            f"{driver[0]}.{driver[1]}, takes up to {newest[0]}.{newest[1]}; run: {_install(driver)}"
        )
    raise NotTestedError(failure)


def compilers() -> dict[str, Compile]:
    """Return the compilers of this machine by name, in the order in which they are tried."""
    by_name: dict[str, Compile] = {}
    if nvrtc := load_nvrtc():
        by_name["NVRTC"] = partial(compile_with_nvrtc, nvrtc)
    if nvcc := find_nvcc():
        by_name[nvcc] = partial(compile_with_nvcc, nvcc)
    return by_name


def newest_ptx(cuda: Version) -> Version | None:
    """Return the newest PTX version that a driver of this CUDA takes, as (9, 0); None for an unknown CUDA."""
    major, minor = cuda
    if not 11 <= major <= 13:
        return None
    return major - 4, minor - 1 if (12, 6) <= cuda < (13, 0) else minor  # CUDA 12.5 and 12.6 share PTX 8.5


def _install(driver: Version | None) -> str:
    """Return the command that installs the newest NVRTC whose PTX the driver takes."""
    if driver is None:
        return "pip install cuda-bindings nvidia-cuda-nvrtc"
    major, minor = driver
    suffix = f"-cu{major}" if major < 13 else ""
    return f"pip install 'cuda-bindings<{major + 1}' 'nvidia-cuda-nvrtc{suffix}<{major}.{minor + 1}'"


def load_nvrtc() -> Any | None:
    """Return the module cuda.bindings.nvrtc; None where it, or the library libnvrtc, is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it could not load NVRTC's builtins ahead of NVRTC itself
            nvrtc = importlib.import_module("cuda.bindings.nvrtc")
            nvrtc.nvrtcVersion()  # loads the library
    except (ImportError, RuntimeError):
        return None
    return nvrtc


def compile_with_nvrtc(nvrtc: Any, source: str, architecture: str) -> bytes:
    """Return PTX by NVRTC.

    Raises:
        NotTestedError: NVRTC refuses the source or the architecture.
    """
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    try:
        options = [f"--gpu-architecture={_virtual(architecture)}".encode(), b"--std=c++17"]
        (failed,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        output = "ProgramLog" if failed else "PTX"
        _, size = getattr(nvrtc, f"nvrtcGet{output}Size")(program)
        text: bytes = b" " * size
        getattr(nvrtc, f"nvrtcGet{output}")(program, text)  # writes into `text`
        text = text.partition(b"\0")[0]
        if failed:
            raise NotTestedError(_failure("NVRTC", architecture, text.decode(errors="replace") or failed.name))
        return text
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def find_nvcc() -> str | None:
    """Return the path of nvcc: on PATH, under CUDA_HOME, or in the folder of JetPack's toolkit."""
    folders = (os.environ.get("PATH", os.defpath), f"{os.environ.get('CUDA_HOME', TOOLKIT)}/bin", f"{TOOLKIT}/bin")
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def compile_with_nvcc(nvcc: str, source: str, architecture: str) -> bytes:
    """Return PTX by nvcc.

    Raises:
        NotTestedError: nvcc refuses the source or the architecture, takes too long or does not run.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edge-attn-ptx-") as folder:
            code, ptx = Path(folder, "kernel.cu"), Path(folder, "kernel.ptx")
            code.write_text(source, encoding="utf-8")
            command = [nvcc, "-ptx", f"-arch={_virtual(architecture)}", "-std=c++17", "-o", str(ptx), str(code)]
            subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=SECONDS)
            return ptx.read_bytes()
    except subprocess.CalledProcessError as error:
        raise NotTestedError(_failure(nvcc, architecture, error.stderr or error.stdout)) from error
    except subprocess.TimeoutExpired as error:
        raise NotTestedError(_failure(nvcc, architecture, f"it took longer than {SECONDS} seconds")) from error
    except OSError as error:
        raise NotTestedError(_failure(nvcc, architecture, f"it does not run: {error}")) from error


def _virtual(architecture: str) -> str:
    return architecture.replace("sm_", "compute_", 1)


def _failure(compiler: str, architecture: str, output: str) -> str:
    """Return one sentence: the first line of the compiler's output, without its folder."""
    first = next((line.strip() for line in output.splitlines() if line.strip()), "without a reason")
    first = first[first.find("kernel.cu") :] if "kernel.cu" in first else first
    return f"{compiler} writes no PTX for {architecture}: {first}"
