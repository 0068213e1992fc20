"""CUDA source to PTX, with nvcc or with NVRTC, for one GPU architecture.

PTX of one CUDA needs a driver of that CUDA or of a newer one, minor version and all: a driver of CUDA 13.0 takes no PTX
of 13.2. So every compiler that is here is tried until the PTX of one is not newer than the driver.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import TypeAlias

from edge_attn.errors import NotTestedError

TOOLKIT = Path("/usr/local/cuda")
"""Where a toolkit lies that neither PATH nor CUDA_HOME names."""
NVRTC_NAMES = ("libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12")
DRIVER = "libcuda.so.1"
SECONDS = 300
"""After which nvcc is given up."""
Version: TypeAlias = tuple[int, int]


def compile_ptx(source: str, architecture: str) -> bytes:
    """PTX of `source` for `architecture`, as "sm_87", that this machine's driver takes: of the first nvcc or NVRTC that
    makes one.

    Raises:
        NotTestedError: there is no compiler, or none does; the sentence is that of the last.
    """
    driver = driver_cuda()
    failure = NotTestedError(
        "a plugin needs a CUDA compiler, and there is none: neither nvcc (on PATH or under CUDA_HOME) nor libnvrtc (of "
        f"the system or of the package nvidia-cuda-nvrtc); run: {_install(driver)}"
    )
    for compiler, compile_with in compilers():
        try:
            made = compile_with(compiler, source, architecture)
            _refuse_newer(made, compiler, driver)
        except NotTestedError as error:
            failure = error
        else:
            return made
    raise failure


def compilers() -> Iterator[tuple[Path, Callable[[Path, str, str], bytes]]]:
    """Every compiler here, and what compiles with it."""
    yield from ((path, with_nvcc) for path in nvccs())
    yield from ((path, with_nvrtc) for path in nvrtcs())


def driver_cuda() -> Version | None:
    """The CUDA of this machine's driver, as (13, 0); None where there is no driver."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    number = ctypes.c_int()
    failed = driver.cuDriverGetVersion(ctypes.byref(number))
    return None if failed or not number.value else (number.value // 1000, number.value % 1000 // 10)


def newest_ptx(cuda: Version) -> Version | None:
    """The newest version of PTX that a driver of this CUDA takes, as (9, 0); None where that is not known."""
    major, minor = cuda
    if not 11 <= major <= 13:
        return None
    return major - 4, minor - 1 if (12, 6) <= cuda < (13, 0) else minor  # 12.5 and 12.6 both make 8.5


def _refuse_newer(made: bytes, compiler: Path, driver: Version | None) -> None:
    """
    Raises:
        NotTestedError: the driver does not take PTX that is so new.
    """
    found = re.search(rb"^\.version\s+(\d+)\.(\d+)", made, re.MULTILINE)
    newest = newest_ptx(driver) if driver else None
    if found is None or driver is None or newest is None:
        return
    version = int(found[1]), int(found[2])
    if version > newest:
        raise NotTestedError(
            f"{compiler} makes PTX {_dotted(version)}, and this machine's driver, of CUDA {_dotted(driver)}, takes up "
            f"to {_dotted(newest)}; run: {_install(driver)}"
        )


def _install(driver: Version | None) -> str:
    """The command that brings the newest NVRTC whose PTX the driver takes."""
    if driver is None:
        return "pip install nvidia-cuda-nvrtc"
    major, minor = driver
    return f"pip install 'nvidia-cuda-nvrtc{f'-cu{major}' if major < 13 else ''}<{major}.{minor + 1}'"


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def nvccs() -> list[Path]:
    """nvcc on PATH, under CUDA_HOME, and in the toolkit's usual place."""
    on_path = shutil.which("nvcc")
    places = [*([Path(on_path)] if on_path else []), *(folder / "bin" / "nvcc" for folder in _toolkits())]
    return [place for place in dict.fromkeys(places) if os.access(place, os.X_OK)]


def nvrtcs() -> list[Path]:
    """libnvrtc in NVIDIA's wheels, the newest first, in toolkits, and where the loader finds one."""
    package = util.find_spec("nvidia")
    wheels = [Path(place) for place in package.submodule_search_locations or ()] if package else []
    found = [path for folder in wheels for path in folder.glob("*/lib/libnvrtc.so.*")]
    found.sort(key=lambda path: [int(n) for n in re.findall(r"\d+", path.name.partition(".so.")[2])], reverse=True)
    found += [path for folder in _toolkits() for name in NVRTC_NAMES for path in folder.glob(f"lib*/{name}")]
    return [path for path in (*found, *map(Path, NVRTC_NAMES)) if _loads(path)]


def _toolkits() -> list[Path]:
    home = os.environ.get("CUDA_HOME")
    return [*([Path(home)] if home else []), TOOLKIT]


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def with_nvcc(nvcc: Path, source: str, architecture: str) -> bytes:
    try:
        with tempfile.TemporaryDirectory(prefix="edge-attn-ptx-") as folder:
            code, made = Path(folder, "kernel.cu"), Path(folder, "kernel.ptx")
            code.write_text(source, encoding="utf-8")
            command = [str(nvcc), "-ptx", f"-arch={_virtual(architecture)}", "-std=c++17", "-o", str(made), str(code)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
            if done.returncode != 0:
                raise NotTestedError(_refused(nvcc, architecture, done.stderr or done.stdout))
            return made.read_bytes()
    except subprocess.TimeoutExpired as error:
        raise NotTestedError(_refused(nvcc, architecture, f"it took longer than {SECONDS} seconds")) from error
    except (OSError, UnicodeDecodeError) as error:
        raise NotTestedError(_refused(nvcc, architecture, f"it does not run: {error}")) from error


def with_nvrtc(path: Path, source: str, architecture: str) -> bytes:
    try:
        nvrtc = _load_nvrtc(path)
    except (OSError, AttributeError) as error:
        raise NotTestedError(_refused(path, architecture, f"it does not load: {error}")) from error
    program = ctypes.c_void_p()

    def check(code: int) -> None:
        if code != 0:
            raise NotTestedError(_refused(path, architecture, nvrtc.nvrtcGetErrorString(code).decode()))

    def text(size_of: str, write: str) -> bytes:
        size = ctypes.c_size_t()
        check(getattr(nvrtc, size_of)(program, ctypes.byref(size)))
        room = ctypes.create_string_buffer(size.value)
        check(getattr(nvrtc, write)(program, room))
        return room.value

    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        options = (f"--gpu-architecture={_virtual(architecture)}".encode(), b"--std=c++17")
        failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if failed:
            said = text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog").decode(errors="replace")
            raise NotTestedError(_refused(path, architecture, said or nvrtc.nvrtcGetErrorString(failed).decode()))
        return text("nvrtcGetPTXSize", "nvrtcGetPTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@functools.cache
def _load_nvrtc(path: Path) -> ctypes.CDLL:
    for builtins in path.parent.glob("libnvrtc-builtins.so.*") if path.is_absolute() else ():
        ctypes.CDLL(str(builtins))  # NVRTC asks the loader for it by name, and a wheel's folder is not on its path
    nvrtc = ctypes.CDLL(str(path))
    pointer, strings, size = ctypes.c_void_p, ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_size_t)
    handle = ctypes.POINTER(ctypes.c_void_p)
    signatures = {
        "nvrtcCreateProgram": (handle, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, strings, strings),
        "nvrtcCompileProgram": (pointer, ctypes.c_int, strings),
        "nvrtcGetProgramLogSize": (pointer, size),
        "nvrtcGetProgramLog": (pointer, ctypes.c_char_p),
        "nvrtcGetPTXSize": (pointer, size),
        "nvrtcGetPTX": (pointer, ctypes.c_char_p),
        "nvrtcDestroyProgram": (handle,),
        "nvrtcGetErrorString": (ctypes.c_int,),
    }
    for name, arguments in signatures.items():
        getattr(nvrtc, name).argtypes = arguments
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    return nvrtc


def _virtual(architecture: str) -> str:
    return architecture.replace("sm_", "compute_", 1)


def _refused(compiler: Path, architecture: str, said: str) -> str:
    """One sentence: the first line of what the compiler said, without its folder."""
    first = next((line.strip() for line in said.splitlines() if line.strip()), "it says nothing")
    first = first[first.find("kernel.cu") :] if "kernel.cu" in first else first
    return f"{compiler} makes no PTX for {architecture}: {first}"
