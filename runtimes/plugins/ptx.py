"""CUDA source to PTX, with nvcc or with NVRTC, for one GPU architecture.

PTX of one toolkit needs a driver of the same major version or newer: on JetPack 7 a toolkit of CUDA 13.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
from importlib import util
from pathlib import Path

from edge_attn.errors import NotTestedError

TOOLKIT = Path("/usr/local/cuda")
"""Where a toolkit lies that neither PATH nor CUDA_HOME names."""
NVRTC_NAMES = ("libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12")
NO_COMPILER = (
    "a plugin needs a CUDA compiler, and there is none: neither nvcc (on PATH or under CUDA_HOME) nor libnvrtc "
    "(of the system or of the package nvidia-cuda-nvrtc); run: pip install nvidia-cuda-nvrtc, or make the target again "
    "without --plugin: the op's function body computes the same"
)


def compile_ptx(source: str, architecture: str) -> bytes:
    """PTX of `source` for `architecture`, as "sm_87"; with nvcc where there is one, else with NVRTC.

    Raises:
        NotTestedError: there is no compiler, it does not know the architecture, or it refuses the source.
    """
    compilers = ((find_nvcc, with_nvcc), (find_nvrtc, with_nvrtc))
    for find, compile_with in compilers:
        found = find()
        if found is not None:
            return compile_with(found, source, architecture)
    raise NotTestedError(NO_COMPILER)


def find_nvcc() -> Path | None:
    """nvcc on PATH, under CUDA_HOME, or in the toolkit's usual place."""
    on_path = shutil.which("nvcc")
    places = [*([Path(on_path)] if on_path else []), *(folder / "bin" / "nvcc" for folder in _toolkits())]
    return next((place for place in places if os.access(place, os.X_OK)), None)


def find_nvrtc() -> Path | None:
    """libnvrtc in NVIDIA's wheels (the newest), in a toolkit, or where the loader finds one."""
    package = util.find_spec("nvidia")
    wheels = [Path(place) for place in package.submodule_search_locations or ()] if package else []
    found = [path for folder in wheels for path in folder.glob("*/lib/libnvrtc.so.*")]
    if found:
        return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name.partition(".so.")[2])])
    places = [path for folder in _toolkits() for name in NVRTC_NAMES for path in folder.glob(f"lib*/{name}")]
    return next((place for place in (*places, *map(Path, NVRTC_NAMES)) if _loads(place)), None)


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
    with tempfile.TemporaryDirectory(prefix="edge-attn-ptx-") as folder:
        code, made = Path(folder, "kernel.cu"), Path(folder, "kernel.ptx")
        code.write_text(source, encoding="utf-8")
        command = [str(nvcc), "-ptx", f"-arch={_virtual(architecture)}", "-std=c++17", "-o", str(made), str(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode != 0:
            raise NotTestedError(_refused(str(nvcc), architecture, done.stderr or done.stdout))
        return made.read_bytes()


def with_nvrtc(path: Path, source: str, architecture: str) -> bytes:
    nvrtc = _load_nvrtc(path)
    program = ctypes.c_void_p()

    def check(code: int) -> None:
        if code != 0:
            raise NotTestedError(_refused(str(path), architecture, nvrtc.nvrtcGetErrorString(code).decode()))

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
            raise NotTestedError(_refused(str(path), architecture, said or nvrtc.nvrtcGetErrorString(failed).decode()))
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


def _refused(compiler: str, architecture: str, said: str) -> str:
    """One sentence: the first line of what the compiler said, without its folder."""
    first = next((line.strip() for line in said.splitlines() if line.strip()), "it says nothing")
    first = first[first.find("kernel.cu") :] if "kernel.cu" in first else first
    return f"{compiler} makes no PTX for {architecture}: {first}"
