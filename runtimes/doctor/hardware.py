"""The checks of the machine itself: board, system, GPU, CUDA, memory, cache. One function a check."""

from __future__ import annotations

import re
import shlex

from edge_attn.errors import InputError
from edge_attn.runtimes.doctor.check import Check
from edge_attn.runtimes.doctor.facts import (
    CUDA_PACKAGES,
    Board,
    board,
    builds_engines,
    devices,
    dotted,
    gibibytes,
    has_nvidia_card,
    in_container,
    install_driver,
    onnxruntimes,
    pip,
)
from edge_attn.runtimes.doctor.machine import TOO_SLOW, Machine
from edge_attn.runtimes.system_memory import memory

BUILD_NEEDS = 2 * 2**30
"""Bytes that must be available for TensorRT to build engines of our size: its libraries, CUDA's context, the workspace
and the weights twice. An estimate; no board has been measured."""
BUILD_IS_EASY = 4 * 2**30
SMALL_BOARD = 9 * 2**30
"""A Jetson of 8 GB shows less than this, and the GPU lives in the same memory."""
DISK_NEEDS = 2**30

SWAP = "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"
LEND = "sudo docker run --rm -it --runtime nvidia -e NVIDIA_VISIBLE_DEVICES=all --entrypoint edge-attn IMAGE doctor"
NO_DESKTOP = "sudo systemctl isolate multi-user.target"

SMI_FAULTS = (
    ("Driver/library version mismatch", "the driver was updated while the old one is loaded", "sudo reboot"),
    ("couldn't communicate with the NVIDIA driver", "the driver is installed and not loaded", "sudo modprobe nvidia"),
    ("No devices were found", "the driver sees no GPU: it may have fallen off the bus", "sudo reboot"),
)
"""What nvidia-smi says, what it means, and the next command."""

NO_DEVICE = 100
CUDA_FAULTS = {
    NO_DEVICE: ("CUDA is shown no device, perhaps by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES"),
    802: ("the service that joins the GPUs does not run", "sudo systemctl start nvidia-fabricmanager"),
    803: ("the driver's library and its kernel module are of two versions", "sudo reboot"),
    999: ("the driver is in a state that it does not explain", "sudo reboot"),
}
"""cuInit's codes, what they mean, and the next command."""


def check_board(machine: Machine) -> Check:
    found = board(machine)
    if found is None:
        return Check("board", "ok", "no Jetson")
    jetpack = f"JetPack {found.jetpack}" if found.jetpack else "an unknown JetPack"
    text = f"{found.model}, {jetpack} (L4T {found.release})"
    if found.only_cpu:
        advice = "NVIDIA makes no JetPack 6 for this board: only ort-cpu serves here, with Python 3.10 or newer"
        return Check("board", "note", text, advice)
    if found.is_too_old:
        advice = "edge-attn needs JetPack 6.1 or newer (TensorRT 10.3, Python 3.10); flash the board from another PC"
        return Check("board", "fault", text, advice, "sdkmanager")
    if found.l4t is None and in_container(machine):
        return Check("board", "note", text, "the container does not say which L4T its host runs")
    if not found.jetpack:
        return Check("board", "note", text, "newer than what this version of edge-attn knows")
    return Check("board", "ok", text)


def check_system(machine: Machine) -> Check:
    python = machine.probe("python")
    name = re.search(r'^PRETTY_NAME="?([^"\n]+)', machine.read_text("/etc/os-release"), re.MULTILINE)
    system = name[1] if name else "an unknown system"
    place = ", in a container" if in_container(machine) else ""
    kind = "virtual environment" if python["prefix"] != python["base_prefix"] else "Python's own environment"
    text = (
        f"{system} on {python['architecture']}{place}; Python {python['version']} ({kind} {python['prefix']}), "
        f"kernel {machine.read_text('/proc/sys/kernel/osrelease') or 'unknown'}"
    )
    return Check("system", "ok", text)


def check_gpu(machine: Machine) -> Check:
    found, jetson = devices(machine), board(machine)
    cuda = machine.probe("cuda")
    if found:
        text = "; ".join(f"{gpu['name']}, compute capability {_dots(gpu['capability'])}" for gpu in found)
        shared = " shared with the CPU" if jetson else ""
        text += f", {gibibytes(found[0]['memory'])}{shared}"
        driver = _smi(machine)[1]
        return Check("gpu", "ok", f"{text}, driver {driver}" if driver else text)
    error = cuda.get("error", "CUDA's driver shows no device")
    if jetson is not None:
        return _jetson_without_cuda(machine, jetson, error)
    code, driver, said = _smi(machine)
    if code == TOO_SLOW:
        return Check("gpu", "fault", "nvidia-smi does not answer: the GPU hangs", command="sudo reboot")
    for words, meaning, command in SMI_FAULTS:
        if words in said:
            return Check("gpu", "fault", said.splitlines()[0], meaning, command)
    if code == 0 or driver:
        return _without_cuda(machine, driver, error)
    meaning, command = _cuda_fault(machine)
    if command and cuda["code"] != NO_DEVICE:
        return Check("gpu", "fault", error, meaning, command)
    if has_nvidia_card(machine) and not in_container(machine):
        return Check("gpu", "fault", f"an NVIDIA card without a driver ({error})", command=install_driver(machine))
    return Check("gpu", "note", "no NVIDIA GPU: only the CPU runs bundles here")


def _jetson_without_cuda(machine: Machine, jetson: Board, error: str) -> Check:
    expected = f"; this board's GPU has compute capability {_dots(jetson.capability)}" if jetson.capability else ""
    if jetson.only_cpu:
        return Check("gpu", "note", f"CUDA's driver does not work ({error}){expected}", "nothing here needs it")
    if machine.probe("python").get("denied"):
        text = f"this user may not open the GPU ({error}){expected}"
        advice = "CUDA's files are those of two groups, which count from the next login on"
        return Check("gpu", "fault", text, advice, "sudo usermod -aG video,render $USER && sudo reboot")
    meaning, command = _cuda_fault(machine)
    if command:
        return Check("gpu", "fault", f"CUDA's driver does not work ({error}){expected}", meaning, command)
    if in_container(machine):
        advice = "start the container with NVIDIA's runtime, which lends it the board's driver"
        return Check("gpu", "fault", f"no GPU in this container ({error}){expected}", advice, LEND)
    command = f"sudo apt update && sudo apt install --reinstall {jetson.driver_package} && sudo reboot"
    return Check("gpu", "fault", f"CUDA's driver does not work ({error}){expected}", command=command)


def _cuda_fault(machine: Machine) -> tuple[str, str]:
    """What the code of cuInit means and the next command; empty where it says nothing."""
    return CUDA_FAULTS.get(machine.probe("cuda").get("code", 0), ("", ""))


def _without_cuda(machine: Machine, driver: str, error: str) -> Check:
    """nvidia-smi works, and CUDA does not."""
    text = f"driver {driver}, but {error}" if driver else f"nvidia-smi works, but {error}"
    meaning, command = _cuda_fault(machine)
    if command:
        return Check("gpu", "fault", text, meaning, command)
    if in_container(machine):
        lent = "--gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        command = f"docker run --rm -it {lent} --entrypoint edge-attn IMAGE doctor"
        return Check("gpu", "fault", text, "the container was lent nvidia-smi and not CUDA's driver", command)
    return Check("gpu", "fault", text, "CUDA's part of the driver is missing", install_driver(machine))


def _smi(machine: Machine) -> tuple[int, str, str]:
    """nvidia-smi's exit code, the driver that it names, and all that it said."""
    code, said = machine.run("nvidia-smi")
    driver = re.search(r"(?:Driver|KMD) Version: ([\d.]+)", said)
    return code, driver[1] if driver else "", said


def check_cuda(machine: Machine) -> Check:
    cuda, jetson = machine.probe("cuda"), board(machine)
    driver, runtimes = cuda.get("driver", 0), cuda.get("runtimes", [])
    libraries = ", ".join(f"{dotted(found['version'])} ({found['name']})" for found in runtimes)
    text = f"the driver is good for CUDA {dotted(driver)}; " if driver else ""
    text += f"libcudart {libraries}" if libraries else "no libcudart"
    if not devices(machine):
        return Check("cuda", "note", text, "not used without a GPU")
    if jetson is not None and jetson.only_cpu:
        return Check("cuda", "note", text, "not used on this board")
    usable = [found for found in runtimes if found["version"] // 1000 <= driver // 1000]
    if usable:
        return Check("cuda", "ok", text)
    advice = f"the runtimes trt and ort-cuda need a libcudart of CUDA {driver // 1000}"
    if jetson is not None:
        major = jetson.l4t[0] if jetson.l4t else 0
        command = f"sudo apt update && sudo apt install {CUDA_PACKAGES.get(major, 'nvidia-jetpack')}"
        return Check("cuda", "fault", text, advice, command)
    suffix = "" if driver // 1000 >= 13 else f"-cu{driver // 1000}"
    command = f"{pip(machine)} install 'nvidia-cuda-runtime{suffix}<{driver // 1000 + 1}'"
    wanted = "version" in machine.probe("tensorrt") or any("gpu" in name for name, *_ in onnxruntimes(machine))
    return Check("cuda", "fault" if wanted or runtimes else "note", text, advice, command)


def check_memory(machine: Machine) -> Check:
    """Is there enough to build an engine? Where there is no GPU, none is built."""
    found, jetson = memory(machine.read_text), board(machine)
    if found is None:
        text = "/proc/meminfo cannot be read"
        if not builds_engines(machine):
            return Check("memory", "note", text)
        return Check("memory", "fault", text, "so nothing says whether an engine can be built", "cat /proc/meminfo")
    limit = " (the container's limit)" if found.limited else ""
    text = (
        f"{gibibytes(found.available)} available{limit} of {gibibytes(found.total)}, "
        f"swap {gibibytes(found.swap) if found.swap else 'none'}"
    )
    if not builds_engines(machine):
        return Check("memory", "ok", text)
    small = jetson is not None and found.total < SMALL_BOARD
    if found.available < BUILD_NEEDS:
        advice = f"too little for building an engine, which wants {gibibytes(BUILD_NEEDS)}"
        if jetson is None or found.limited:
            return Check("memory", "fault", text, f"{advice}: close what uses most", "ps aux --sort=-rss | head")
        return Check(
            "memory", "fault", text, f"{advice}: stop the desktop, which also frees the GPU's share", NO_DESKTOP
        )
    if small and not found.swap:
        advice = "on a board of 8 GB swap takes what is not the GPU's while an engine is built"
        if found.available < BUILD_IS_EASY:
            return Check("memory", "fault", text, f"without it the build may be killed: {advice}", SWAP)
        return Check("memory", "note", text, f"enough for building an engine now; {advice}", SWAP)
    if small and found.available < BUILD_IS_EASY:
        advice = "enough for building small engines; without the desktop there is more"
        return Check("memory", "note", text, advice, NO_DESKTOP)
    return Check("memory", "ok", f"{text}: enough for building an engine")


def check_cache(machine: Machine) -> Check:
    try:
        found = machine.usage()
    except InputError as error:
        status = "fault" if builds_engines(machine) else "note"
        return Check("cache", status, str(error), command='export XDG_CACHE_HOME="$PWD/.cache"')
    engines = f"{found.engines} engine{'s' * (found.engines != 1)}"
    content = f"{engines}, {found.size / 1e6:.1f} MB" if found.size else "empty"
    text = f"{found.folder}: {content}; {gibibytes(found.free)} free on its disk"
    if not builds_engines(machine):
        return Check("cache", "ok", text)
    if not found.writable:
        advice = "engines cannot be kept there; another folder can be given with --cache-dir"
        folder = shlex.quote(found.folder)
        command = f"sudo mkdir -p {folder} && sudo chown -R $USER {folder}"
        return Check("cache", "fault", text, advice, command)
    if found.free < DISK_NEEDS:
        advice = f"too little: an engine and what it is built from want {gibibytes(DISK_NEEDS)}"
        return Check("cache", "fault", text, advice, "edge-attn cache clear" if found.engines else "df -h")
    return Check("cache", "ok", text)


def _dots(capability: list[int] | tuple[int, ...]) -> str:
    return ".".join(map(str, capability))
