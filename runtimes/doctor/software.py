"""The checks of what runs graphs: TensorRT, TensorRT-RTX, ONNX Runtime and its providers. One function a check."""

from __future__ import annotations

import shlex
from collections import Counter

from edge_attn import __version__
from edge_attn.runtimes.doctor.check import Check
from edge_attn.runtimes.doctor.facts import (
    LIBNVINFER,
    Board,
    board,
    devices,
    in_container,
    install_driver,
    onnxruntimes,
    pip,
    system_bindings,
    system_packages,
    tensorrt_wheels,
)
from edge_attn.runtimes.doctor.hardware import LEND, check_cuda
from edge_attn.runtimes.doctor.machine import SILENT, Machine
from edge_attn.runtimes.trt.api import OLDEST
from edge_attn.runtimes.versions import parse_version

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
APT = "sudo apt update && sudo apt install"
GPU_FAULTS = {
    "no kernel image": ("this onnxruntime was not built for this GPU", "install --upgrade onnxruntime-gpu"),
    "driver version is insufficient": ("the driver is older than the CUDA that this onnxruntime was built with", ""),
}
"""What ONNX Runtime says, what it means, and what pip is to do; nothing: a newer driver."""
LIBRARIES = "install 'onnxruntime-gpu[cuda,cudnn]'"
EXTRAS = f"'edge_attn-{__version__}-py3-none-any.whl[cpu,optimize]'"


# ---- TensorRT


def check_tensorrt(machine: Machine) -> Check:
    found, jetson = machine.probe("tensorrt"), board(machine)
    if jetson is not None and jetson.only_cpu:
        return Check("tensorrt", "note", "of no use on this board: none that it can have is as new as 10.3")
    if "version" in found:
        return _loaded(machine, found, jetson)
    if "error" in found:
        return _broken(machine, found["error"], jetson)
    bindings, packages = system_bindings(machine), system_packages(machine)
    if jetson is not None and jetson.is_too_old:
        return Check("tensorrt", "note", f"that of JetPack {jetson.jetpack} is older than 10.3")
    if bindings:
        return _unseen(machine, bindings, packages)
    if _library(packages):
        text = f"the library {packages[_library(packages)]} without its Python bindings"
        return Check("tensorrt", "fault", text, command=f"{APT} python3-libnvinfer")
    if jetson is not None:
        advice = "it comes with JetPack, from NVIDIA's apt server; a wheel of pip's does not fit a Jetson"
        return Check("tensorrt", "fault", "not installed", advice, f"{APT} python3-libnvinfer")
    if devices(machine):
        command = f"{pip(machine)} install 'edge-attn[trt]'"
        return Check("tensorrt", "note", "not installed", "for the runtime trt", command)
    return Check("tensorrt", "note", "not installed; of no use without a GPU")


def _loaded(machine: Machine, found: dict[str, str], jetson: Board | None) -> Check:
    text = f"{found['version']} ({found['file']})"
    packages, wheels = system_packages(machine), tensorrt_wheels(machine)
    own = packages.get(_library(packages), "")
    removed = f"{pip(machine)} uninstall -y {' '.join(wheels) or 'tensorrt'}"
    is_wheel = not found["file"].startswith("/usr/lib/")
    if jetson is not None and is_wheel and own and parse_version(own)[:3] != parse_version(found["version"])[:3]:
        advice = f"the board's own TensorRT is {own}; the wheel that hides it was not built for a Jetson"
        return Check("tensorrt", "fault", text, advice, removed)
    if parse_version(found["version"])[:3] < OLDEST:
        command = "sdkmanager" if jetson is not None else f"{pip(machine)} install --upgrade 'edge-attn[trt]'"
        return Check("tensorrt", "fault", text, "edge-attn needs TensorRT 10.3 or newer", command)
    driver = machine.probe("cuda").get("driver", 0) // 1000
    built = [int(name.split("cu")[1][:2]) for name in wheels if name.startswith("tensorrt-cu1")]
    if driver and built and max(built) > driver:
        advice = f"it was built for CUDA {max(built)}, and the driver is good for CUDA {driver}"
        return Check("tensorrt", "fault", text, advice, f"{removed} && {pip(machine)} install tensorrt-cu{driver}")
    return Check("tensorrt", "ok", text)


def _library(packages: dict[str, str]) -> str:
    """The newest package of TensorRT's library that is installed; empty where there is none."""
    return next((name for name in LIBNVINFER if name in packages), "")


def _broken(machine: Machine, error: str, jetson: Board | None) -> Check:
    text = f"installed, and does not load: {error}"
    if jetson is None:
        if not devices(machine):
            return Check("tensorrt", "note", text, "of no use without a GPU")
        return Check("tensorrt", "fault", text, command=f"{pip(machine)} install --force-reinstall tensorrt")
    wheels = tensorrt_wheels(machine)
    if wheels:
        advice = "a wheel of pip's does not fit a Jetson, and hides the board's own"
        return Check("tensorrt", "fault", text, advice, f"{pip(machine)} uninstall -y {' '.join(wheels)}")
    reinstalled = f"{APT} --reinstall {_library(system_packages(machine)) or 'libnvinfer10'} python3-libnvinfer"
    if "libnvdla_compiler" in error:
        if jetson.l4t is not None and jetson.l4t >= (39, 0, 0):
            advice = (
                "JetPack 7.2 no longer has that library: this TensorRT is of an older JetPack, take the board's own"
            )
            return Check("tensorrt", "fault", text, advice, reinstalled)
        if in_container(machine):
            advice = "a container is lent that library by its host, which must have nvidia-l4t-dla-compiler"
            return Check("tensorrt", "fault", text, advice, LEND)
        return Check("tensorrt", "fault", text, command=f"{APT} nvidia-l4t-dla-compiler")
    return Check("tensorrt", "fault", text, command=reinstalled)


def _unseen(machine: Machine, bindings: dict[str, str], packages: dict[str, str]) -> Check:
    """The system has it, and this Python does not see it."""
    python = machine.probe("python")
    ours = ".".join(python["version"].split(".")[:2])
    release = packages.get("python3-libnvinfer", "")
    theirs = ours if ours in bindings else max(bindings, key=parse_version)
    of_the_system = bindings[theirs].startswith(f"{python['base_prefix']}/lib/")
    if ours in bindings and of_the_system and python["prefix"] != python["base_prefix"]:
        text = f"the system's {release or 'TensorRT'} in {bindings[ours]} is hidden from this virtual environment"
        advice = "let it see the system's packages; what is installed in it stays"
        command = f"/usr/bin/python{ours} -m venv --system-site-packages {shlex.quote(python['prefix'])}"
        return Check("tensorrt", "fault", text, advice, command)
    text = (
        f"the system's {release or 'TensorRT'} is for the system's Python {theirs}, and this is {python['executable']}"
    )
    advice = "make an environment of the system's Python"
    command = f"/usr/bin/python{theirs} -m venv --system-site-packages .venv && .venv/bin/pip install {EXTRAS}"
    return Check("tensorrt", "fault", text, advice, command)


def check_tensorrt_rtx(machine: Machine) -> Check:
    found = machine.probe("tensorrt_rtx")
    if "error" in found:
        wheels = "tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"
        command = f"{pip(machine)} install --force-reinstall --only-binary=:all: {wheels}"
        return Check("tensorrt-rtx", "fault", f"installed, and does not load: {found['error']}", command=command)
    if "version" not in found:
        return Check("tensorrt-rtx", "ok", "not installed; nothing needs it")
    text = f"{found['version']} ({found['file']})"
    if board(machine) is not None:
        return Check("tensorrt-rtx", "note", text, "it builds nothing for a Jetson; the runtime here is trt")
    if not devices(machine):
        return Check("tensorrt-rtx", "ok", f"{text}: builds engines without a GPU, and cannot run them")
    return Check("tensorrt-rtx", "ok", text)


# ---- ONNX Runtime


def check_onnxruntime(machine: Machine) -> Check:
    """Which packages bring it, and whether two of them lie in one another's files."""
    packages, found = onnxruntimes(machine), machine.probe("onnxruntime")
    text = ", ".join(f"{name} {release}" for name, release, _ in packages)
    crowded = [folder for folder, count in Counter(folder for *_, folder in packages).items() if count > 1]
    if crowded:
        together = [name for name, _, folder in packages if folder == crowded[0]]
        advice = f"{' and '.join(together)} are one module, onnxruntime, and each overwrote files of the other"
        command = _replaced(machine, " ".join(together), _wanted(machine))
        return Check("onnxruntime", "fault", text, advice, command)
    if "error" in found:
        text = f"{text or 'the module'} does not load: {found['error']}"
        if SILENT in found["error"]:
            advice = "perhaps it waits for the GPU: ask again without"
            return Check("onnxruntime", "fault", text, advice, "CUDA_VISIBLE_DEVICES= edge-attn doctor")
        names = " ".join(name for name, *_ in packages)
        command = _replaced(machine, names, _wanted(machine)) if names else _forced(machine)
        return Check("onnxruntime", "fault", text, command=command)
    if not found:
        extra = "gpu" if _wanted(machine) == "onnxruntime-gpu" else "cpu"
        advice = "the runtime ort-cpu and `edge-attn optimize` need it"
        status = "note" if "trt" in usable(machine) else "fault"
        return Check("onnxruntime", status, "not installed", advice, f"{pip(machine)} install 'edge-attn[{extra}]'")
    if len(packages) > 1:
        advice = f"two packages in two folders; {found['file']} is the one that loads"
        return Check("onnxruntime", "note", text, advice)
    return Check("onnxruntime", "ok", f"{text or found['version']} ({found['file']})")


def _wanted(machine: Machine) -> str:
    """The package of ONNX Runtime that serves here: the GPU's of pip has no code for a Jetson."""
    return "onnxruntime-gpu" if devices(machine) and board(machine) is None else "onnxruntime"


def _forced(machine: Machine) -> str:
    return f"{pip(machine)} install --force-reinstall {_wanted(machine)}"


def _replaced(machine: Machine, names: str, wanted: str) -> str:
    return f"{pip(machine)} uninstall -y {names} && {pip(machine)} install {wanted}"


def check_providers(machine: Machine) -> Check:
    """Those that really run a graph; the list that ONNX Runtime gives names also those that do not load."""
    found = machine.probe("onnxruntime")
    if "runs" not in found:
        return Check("providers", "note", "none, for want of onnxruntime")
    text = f"a graph runs on {', '.join(found['runs']) or 'none'}"
    reasons = [f"not on {name}: {why}" for name, why in found["reasons"].items()]
    text = "; ".join([text, *reasons])
    if CPU in found["reasons"]:
        names = " ".join(name for name, *_ in onnxruntimes(machine)) or "onnxruntime"
        return Check("providers", "fault", text, command=_replaced(machine, names, _wanted(machine)))
    if CUDA not in found["reasons"]:
        return Check("providers", "ok", text)
    if board(machine) is not None:
        packages = " ".join(name for name, *_ in onnxruntimes(machine) if "gpu" in name) or "onnxruntime-gpu"
        advice = "pip's onnxruntime-gpu has no code for a Jetson's GPU, and the runtime trt needs none of it"
        return Check("providers", "fault", text, advice, _replaced(machine, packages, "onnxruntime"))
    if not devices(machine):
        return Check("providers", "note", text, "there is no GPU that it could run on")
    for words, (advice, task) in GPU_FAULTS.items():
        if words in found["reasons"][CUDA]:
            command = f"{pip(machine)} {task}" if task else install_driver(machine)
            return Check("providers", "fault", text, advice, command)
    advice = "ONNX Runtime misses libraries of CUDA or cuDNN, of the version that it was built with"
    return Check("providers", "fault", text, advice, f"{pip(machine)} {LIBRARIES}")


# ---- all together


def usable(machine: Machine) -> list[str]:
    """The runtimes whose parts are here and load; only `verify` says whether they compute what they should."""
    runs = machine.probe("onnxruntime").get("runs", [])
    gpu, jetson = bool(devices(machine)), board(machine) is not None
    trt = "version" in machine.probe("tensorrt") and check_tensorrt(machine).status == "ok"
    has = {
        "ort-cpu": CPU in runs,
        "ort-cuda": CUDA in runs,
        "trt": gpu and trt and check_cuda(machine).status == "ok",
        "trt-rtx": gpu and not jetson and "version" in machine.probe("tensorrt_rtx"),
    }
    return [name for name, is_here in has.items() if is_here]


def check_runtimes(machine: Machine) -> Check:
    found = usable(machine)
    if not found:
        return Check(
            "runtimes", "fault", "none is here", command=check_onnxruntime(machine).command or _forced(machine)
        )
    advice = f"whether they say what the model says: edge-attn verify BUNDLE --runtime {found[-1]}"
    return Check("runtimes", "ok", f"here are the parts of {', '.join(found)}", advice)
