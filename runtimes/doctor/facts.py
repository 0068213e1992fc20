"""Facts about a machine, from its files, commands and probes."""

from __future__ import annotations

import re
import shlex
from functools import cached_property
from typing import Any

from edge_attn.runtimes.doctor.machine import Machine
from edge_attn.runtimes.doctor.probes import CPU, CUDA
from edge_attn.runtimes.trt.api import OLDEST as OLDEST_TENSORRT
from edge_attn.system_memory import SystemMemory, system_memory
from edge_attn.versions import OLDEST, is_too_old, parse_version

JETPACK = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}
"""JetPack by major number of L4T. docs/jetson.md lists the releases."""
OLDEST_L4T = (36, 4, 0)
"""JetPack 6.1, the first with TensorRT 10.3."""
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")


class Facts:
    """Facts about one machine. Each is read when it is first used."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.read_text, self.probe = machine.read_text, machine.probe

    # ---- board and system

    @cached_property
    def l4t(self) -> tuple[int, ...]:
        """Release of L4T, NVIDIA's Linux for Jetson; empty elsewhere, and in a container that does not name it."""
        release = re.search(r"# R(\d+) \(release\), REVISION: (\d+)\.(\d+)", self.read_text("/etc/nv_tegra_release"))
        return tuple(map(int, release.groups())) if release else ()

    @property
    def is_jetson(self) -> bool:
        return bool(self.l4t) or "nvidia,tegra" in self.read_text("/proc/device-tree/compatible")

    @property
    def is_old_l4t(self) -> bool:
        return bool(self.l4t) and self.l4t < OLDEST_L4T

    @property
    def in_container(self) -> bool:
        return bool(self.machine.glob("/.dockerenv") or self.machine.glob("/run/.containerenv"))

    @cached_property
    def memory(self) -> SystemMemory:
        """Memory of the machine or the container; zeros if it is unknown."""
        return system_memory(self.read_text) or SystemMemory(0, 0, 0, False)

    @property
    def cache(self) -> dict[str, Any]:
        return self.probe("cache")

    # ---- driver and CUDA

    @property
    def gpus(self) -> list[dict[str, Any]]:
        """GPUs that CUDA's driver lists."""
        return list(self.probe("cuda").get("devices", []))

    @property
    def builds_engines(self) -> bool:
        """True if TensorRT can use a GPU here, or should be able to on this board."""
        return bool(self.gpus or self.is_jetson) and not self.is_old_l4t

    @property
    def has_card(self) -> bool:
        """True if an NVIDIA device is plugged in, even without a driver. A container shows its host's."""
        vendors = self.machine.glob("/sys/bus/pci/devices/*/vendor")
        return not self.in_container and any(self.read_text(vendor) == "0x10de" for vendor in vendors)

    @cached_property
    def nvidia_smi(self) -> tuple[int, str]:
        """Exit code and output of nvidia-smi."""
        return self.machine.run("nvidia-smi")

    @property
    def cuda(self) -> tuple[int, int]:
        """Newest version of CUDA that the driver supports, as (major, minor); zeros without a driver."""
        version = self.probe("cuda").get("driver", 0)
        return version // 1000, version % 1000 // 10

    @property
    def has_cudart(self) -> bool:
        """True if there is a libcudart that the driver supports."""
        return any(version // 1000 <= self.cuda[0] for version in self.probe("cuda").get("runtimes", []))

    # ---- Python, TensorRT and ONNX Runtime

    @property
    def python(self) -> dict[str, Any]:
        return self.probe("python")

    @property
    def pip(self) -> str:
        """Command that runs pip in the examined environment, whichever environment is active."""
        return f"{shlex.quote(self.python.get('executable') or 'python3')} -m pip"

    def loads(self, library: str) -> bool:
        return "version" in self.probe(library)

    def error(self, library: str) -> str:
        """Return why an installed library does not load; empty if it loads or is absent."""
        return str(self.probe(library).get("error", ""))

    @property
    def bindings(self) -> list[str]:
        """TensorRT's bindings for the system's Python."""
        return self.machine.glob("/usr/lib/python3*/dist-packages/tensorrt/__init__.py")

    @property
    def is_system_venv(self) -> bool:
        """True in a virtual environment of the system's Python, for which the bindings were built."""
        version = ".".join(self.python["version"].split(".")[:2])
        is_venv = self.python["base_prefix"] == "/usr" != self.python["prefix"]
        return is_venv and self.bindings[-1].startswith(f"/usr/lib/python{version}/")

    @property
    def tensorrt_wheels(self) -> str:
        """Names of TensorRT's packages that pip installed. Those of apt are in /usr/lib."""
        packages = [name for name, _, folder in self.python.get("packages", []) if not folder.startswith("/usr/lib/")]
        return " ".join(name for name in packages if re.match("tensorrt(?!-rtx)", name))

    @property
    def wheel_fits(self) -> bool:
        """False if TensorRT's wheel is on a board, or was built for a newer CUDA than the driver supports."""
        versions = [int(version) for version in re.findall(r"tensorrt-cu(\d\d)", self.tensorrt_wheels)]
        return not versions or not (self.is_jetson or 0 < self.cuda[0] < max(versions))

    @property
    def onnxruntimes(self) -> list[list[str]]:
        """Name, version and folder of each package of ONNX Runtime."""
        return [package for package in self.python.get("packages", []) if package[0] in ONNXRUNTIMES]

    @property
    def is_old_onnxruntime(self) -> bool:
        return is_too_old("onnxruntime", str(self.probe("onnxruntime").get("version", "")))

    @property
    def is_old_tensorrt(self) -> bool:
        return () < parse_version(str(self.probe("tensorrt").get("version", ""))) < OLDEST_TENSORRT

    @property
    def loads_tensorrt(self) -> bool:
        return self.loads("tensorrt") and self.wheel_fits and not self.is_old_tensorrt

    @property
    def libraries(self) -> dict[str, str]:
        """Versions of the other packages that edge-attn uses, by module."""
        return dict(self.python.get("libraries", {}))

    @property
    def old_libraries(self) -> str:
        """Requirements that replace the packages which are too old, for pip; empty if there are none."""
        names = [name for name, version in self.libraries.items() if is_too_old(name, version)]
        return " ".join(f"'{name.replace('_', '-')}>={'.'.join(map(str, OLDEST[name]))}'" for name in sorted(names))

    @property
    def onnxruntime_extra(self) -> str:
        """Extra of edge-attn with the ONNX Runtime that fits: its GPU build has no code for a Jetson."""
        return "gpu" if self.gpus and not self.is_jetson else "cpu"

    @property
    def cuda_provider_error(self) -> str:
        """Why the CUDA provider does not run a graph; empty if it does or is not in this build."""
        return str(self.probe("onnxruntime").get("reasons", {}).get(CUDA, ""))

    @property
    def runtimes(self) -> list[str]:
        """Runtimes whose libraries load, the best first. Only `verify` proves that they compute the right values."""
        runs, has_gpu = self.probe("onnxruntime").get("runs", []), bool(self.gpus) and not self.is_old_l4t
        usable = {
            "trt": has_gpu
            and self.has_cudart
            and self.loads("tensorrt")
            and self.wheel_fits
            and not self.is_old_tensorrt,
            "trt-rtx": has_gpu and self.loads("tensorrt_rtx") and not self.is_jetson,
            "ort-cuda": CUDA in runs,
            "ort-cpu": CPU in runs,
        }
        return [name for name, is_usable in usable.items() if is_usable]
