"""CUDA source to PTX for one GPU architecture, with NVRTC (through the package cuda-bindings) or with nvcc.

PTX of one CUDA needs a driver of that CUDA or of a newer one, minor version and all: a driver of CUDA 13.0 takes no PTX
of 13.2. So every compiler is tried until the PTX of one is not newer than the driver.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from edge_attn.errors import NotTestedError
from edge_attn.runtimes.trt.cudart import driver_cuda

TOOLKIT = Path("/usr/local/cuda")
"""Folder of a toolkit that neither PATH nor CUDA_HOME names."""
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
    failure = NotTestedError(
        "a plugin needs a CUDA compiler, and there is none: neither NVRTC (the packages cuda-bindings and "
        f"nvidia-cuda-nvrtc) nor nvcc (on PATH or under CUDA_HOME); run: {_install(driver)}"
    )
    for name, compile_with in compilers():
        try:
            ptx = compile_with(source, architecture)
            _refuse_newer(ptx, name, driver)
        except NotTestedError as error:
            failure = error
        else:
            return ptx
    raise failure


def compilers() -> Iterator[tuple[str, Compile]]:
    """Yield the name of each compiler of this machine and the function that compiles with it."""
    nvrtc = load_nvrtc()
    if nvrtc is not None:
        yield "NVRTC", partial(compile_with_nvrtc, nvrtc)
    for path in nvccs():
        yield str(path), partial(compile_with_nvcc, path)


def newest_ptx(cuda: Version) -> Version | None:
    """Return the newest PTX version that a driver of this CUDA takes, as (9, 0); None for an unknown CUDA."""
    major, minor = cuda
    if not 11 <= major <= 13:
        return None
    return major - 4, minor - 1 if (12, 6) <= cuda < (13, 0) else minor  # CUDA 12.5 and 12.6 share PTX 8.5


def _refuse_newer(ptx: bytes, compiler: str, driver: Version | None) -> None:
    """Refuse PTX that this machine's driver does not take.

    Raises:
        NotTestedError: the driver does not take PTX that is so new.
    """
    declared = re.search(rb"^\.version\s+(\d+)\.(\d+)", ptx, re.MULTILINE)
    newest = newest_ptx(driver) if driver else None
    if declared is None or driver is None or newest is None:
        return
    version = int(declared[1]), int(declared[2])
    if version > newest:
        raise NotTestedError(
            f"{compiler} writes PTX {_dotted(version)}, and this machine's driver, of CUDA {_dotted(driver)}, takes up "
            f"to {_dotted(newest)}; run: {_install(driver)}"
        )


def _install(driver: Version | None) -> str:
    """Return the command that installs the newest NVRTC whose PTX the driver takes."""
    if driver is None:
        return "pip install cuda-bindings nvidia-cuda-nvrtc"
    major, minor = driver
    suffix = f"-cu{major}" if major < 13 else ""
    return f"pip install 'cuda-bindings<{major + 1}' 'nvidia-cuda-nvrtc{suffix}<{major}.{minor + 1}'"


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


# ---- NVRTC


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
        if failed:
            log = _nvrtc_text(nvrtc, program, "ProgramLog").decode(errors="replace")
            raise NotTestedError(_failure("NVRTC", architecture, log or failed.name))
        return _nvrtc_text(nvrtc, program, "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _nvrtc_text(nvrtc: Any, program: Any, what: str) -> bytes:
    """Return the PTX or the ProgramLog of a program."""
    _, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    text: bytes = b" " * size
    getattr(nvrtc, f"nvrtcGet{what}")(program, text)  # writes into `text`
    return text.partition(b"\0")[0]


# ---- nvcc


def nvccs() -> list[Path]:
    """Return each nvcc: on PATH, under CUDA_HOME, and in the usual folder of a toolkit."""
    on_path, home = shutil.which("nvcc"), os.environ.get("CUDA_HOME")
    toolkits = [*([Path(home)] if home else []), TOOLKIT]
    paths = [*([Path(on_path)] if on_path else []), *(folder / "bin" / "nvcc" for folder in toolkits)]
    return [path for path in dict.fromkeys(paths) if os.access(path, os.X_OK)]


def compile_with_nvcc(nvcc: Path, source: str, architecture: str) -> bytes:
    """Return PTX by one nvcc.

    Raises:
        NotTestedError: nvcc refuses the source or the architecture, takes too long or does not run.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edge-attn-ptx-") as folder:
            code, ptx = Path(folder, "kernel.cu"), Path(folder, "kernel.ptx")
            code.write_text(source, encoding="utf-8")
            command = [str(nvcc), "-ptx", f"-arch={_virtual(architecture)}", "-std=c++17", "-o", str(ptx), str(code)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
            if done.returncode != 0:
                raise NotTestedError(_failure(nvcc, architecture, done.stderr or done.stdout))
            return ptx.read_bytes()
    except subprocess.TimeoutExpired as error:
        raise NotTestedError(_failure(nvcc, architecture, f"it took longer than {SECONDS} seconds")) from error
    except (OSError, UnicodeDecodeError) as error:
        raise NotTestedError(_failure(nvcc, architecture, f"it does not run: {error}")) from error


def _virtual(architecture: str) -> str:
    return architecture.replace("sm_", "compute_", 1)


def _failure(compiler: Path | str, architecture: str, output: str) -> str:
    """Return one sentence: the first line of the compiler's output, without its folder."""
    first = next((line.strip() for line in output.splitlines() if line.strip()), "without a reason")
    first = first[first.find("kernel.cu") :] if "kernel.cu" in first else first
    return f"{compiler} writes no PTX for {architecture}: {first}"
