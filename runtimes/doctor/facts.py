"""What a machine's files and commands say, read into plain facts: the board, TensorRT's packages, the memory."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Any

from edge_attn.runtimes.doctor.machine import Machine

JETPACKS: dict[tuple[int, int, int], str] = {
    (32, 1, 0): "4",
    (34, 1, 0): "5.0",
    (35, 1, 0): "5",
    (36, 2, 0): "6.0",
    (36, 4, 0): "6.1",
    (36, 4, 3): "6.2",
    (36, 4, 4): "6.2.1",
    (36, 5, 0): "6.2.2",
    (36, 5, 2): "6.2.3",
    (38, 2, 0): "7.0",
    (38, 4, 0): "7.1",
    (39, 2, 0): "7.2",
    (39, 2, 1): "7.2.1",
}
"""From which release of L4T on a board has which JetPack."""
OLDEST_L4T = (36, 4, 0)
"""JetPack 6.1, the first with TensorRT 10.3."""
OLDEST_CAPABILITY = (8, 7)
"""Orin's; NVIDIA made no JetPack 6 for the boards before it."""
CUDA_PACKAGES = {36: "cuda-cudart-12-6", 38: "cuda-cudart-13-0", 39: "cuda-cudart-13-2"}
"""The package of libcudart, by L4T's major number."""
DRIVER_PACKAGES: dict[tuple[int, int] | None, str] = {
    (8, 7): "nvidia-l4t-cuda-nvgpu",
    (11, 0): "nvidia-l4t-cuda-openrm",
}
"""The package of libcuda from L4T 39 on, by compute capability; before, nvidia-l4t-cuda."""
CHIPS = {
    "nvidia,tegra210": (5, 3),
    "nvidia,tegra186": (6, 2),
    "nvidia,tegra194": (7, 2),
    "nvidia,tegra234": (8, 7),
    "nvidia,tegra264": (11, 0),
}
"""The compute capability of each Jetson's chip, as /proc/device-tree/compatible has it."""

BINDINGS = "python3*/dist-packages/tensorrt/__init__.py"
LIBNVINFER = ("libnvinfer11", "libnvinfer10")
"""The packages of TensorRT's library, the newest first."""
PACKAGES = (*LIBNVINFER, "python3-libnvinfer", "nvidia-jetpack", "nvidia-l4t-core", "nvidia-l4t-dla-compiler")


@dataclass(frozen=True)
class Board:
    """A Jetson."""

    model: str
    l4t: tuple[int, int, int] | None
    """None in a container that does not say."""
    jetpack: str
    """Empty where it is not known."""
    capability: tuple[int, int] | None

    @property
    def is_too_old(self) -> bool:
        return self.l4t is not None and self.l4t < OLDEST_L4T

    @property
    def only_cpu(self) -> bool:
        """No JetPack that the board can have brings a TensorRT that is new enough."""
        return self.capability is not None and self.capability < OLDEST_CAPABILITY

    @property
    def driver_package(self) -> str:
        """Where libcuda comes from."""
        split = self.l4t is not None and self.l4t >= (39, 0, 0)
        return DRIVER_PACKAGES.get(self.capability if split else None, "nvidia-l4t-cuda")

    @property
    def release(self) -> str:
        return "unknown" if self.l4t is None else ".".join(map(str, self.l4t))


def board(machine: Machine) -> Board | None:
    """The Jetson that this is, or None."""
    chip = [name for name in machine.read_text("/proc/device-tree/compatible").splitlines() if name in CHIPS]
    said = re.search(r"# R(\d+) \(release\), REVISION: (\d+)\.(\d+)", machine.read_text("/etc/nv_tegra_release"))
    if not chip and said is None:
        return None
    l4t = (int(said[1]), int(said[2]), int(said[3])) if said else None
    installed = system_packages(machine).get("nvidia-jetpack", "")
    jetpack = re.split(r"[+-]b", installed)[0] or _jetpack(l4t)
    model = machine.read_text("/proc/device-tree/model") or "a Jetson without a model name"
    return Board(model, l4t, jetpack, CHIPS[chip[0]] if chip else None)


def _jetpack(l4t: tuple[int, int, int] | None) -> str:
    if l4t is None:
        return ""
    older = [since for since in JETPACKS if since <= l4t and since[0] == l4t[0]]
    return JETPACKS[max(older)] if older else ""


def system_packages(machine: Machine) -> dict[str, str]:
    """The versions of those packages of Debian or Ubuntu that concern us."""
    _, said = machine.run("dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package} ${Version}\n", *PACKAGES)
    return dict(re.findall(r"^ii\s+(\S+) (\S+)$", said, re.MULTILINE))


def system_bindings(machine: Machine) -> dict[str, str]:
    """TensorRT's bindings that came with the system: the version of Python -> the folder that holds them."""
    found = {}
    for start in ("/usr/lib", "/usr/local/lib"):
        for path in machine.glob(f"{start}/{BINDINGS}"):
            version = re.search(r"/python(3\.\d+)/", path)
            if version:
                found[version[1]] = path.removesuffix("/tensorrt/__init__.py")
    return found


def in_container(machine: Machine) -> bool:
    return bool(machine.glob("/.dockerenv") or machine.glob("/run/.containerenv"))


def has_nvidia_card(machine: Machine) -> bool:
    """A display controller of NVIDIA is plugged in, whether or not a driver knows it."""
    for path in machine.glob("/sys/bus/pci/devices/*/vendor"):
        is_display = machine.read_text(path.removesuffix("vendor") + "class").startswith("0x03")
        if is_display and machine.read_text(path) == "0x10de":
            return True
    return False


def onnxruntimes(machine: Machine) -> list[tuple[str, str, str]]:
    """Name, version and folder of each installed package that brings the module onnxruntime."""
    others = ("onnxruntime-genai", "onnxruntime-extensions", "onnxruntime-tools")
    return [
        (name, version, folder)
        for name, version, folder in machine.probe("python").get("packages", [])
        if name.startswith(("onnxruntime", "ort-nightly")) and not name.startswith(others)
    ]


def devices(machine: Machine) -> list[dict[str, Any]]:
    """The GPUs that CUDA's driver shows."""
    found: list[dict[str, Any]] = machine.probe("cuda").get("devices", [])
    return found


def builds_engines(machine: Machine) -> bool:
    """There is a GPU that TensorRT could serve, or a Jetson that should have one."""
    jetson = board(machine)
    return bool(devices(machine)) if jetson is None else not jetson.only_cpu


def tensorrt_wheels(machine: Machine) -> list[str]:
    """The packages of TensorRT that pip installed; those of apt lie in /usr/lib."""
    return [
        name
        for name, _, folder in machine.probe("python").get("packages", [])
        if name.startswith("tensorrt") and not name.startswith("tensorrt-rtx") and not folder.startswith("/usr/lib/")
    ]


def pip(machine: Machine) -> str:
    """pip of the environment that was examined, whichever is the activated one."""
    return f"{shlex.quote(machine.probe('python').get('executable') or 'python3')} -m pip"


def install_driver(machine: Machine) -> str:
    """The command that brings NVIDIA's driver to a machine that is no Jetson; on an unknown system, to its page."""
    said = re.findall(r"^ID(?:_LIKE)?=(.*)$", machine.read_text("/etc/os-release"), re.MULTILINE)
    systems = " ".join(said).replace('"', "").split()
    if "ubuntu" in systems:
        return "sudo ubuntu-drivers install && sudo reboot"
    if "debian" in systems:
        return "sudo apt update && sudo apt install nvidia-driver && sudo reboot"
    return "xdg-open https://www.nvidia.com/drivers"


def dotted(number: int) -> str:
    """CUDA's 12060 as 12.6."""
    return f"{number // 1000}.{number % 1000 // 10}"


def gibibytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
