"""The repair table: for each check, the conditions that need attention, and the sentence and command that help.

The first row whose condition is true decides. Without such a row the check is ok. In a sentence or command `{m.pip}`
stands for that fact of the machine. Rare causes are not here: docs/jetson.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edge_attn import __version__
from edge_attn.runtimes.doctor.facts import ONNXRUNTIMES, Facts
from edge_attn.runtimes.doctor.machine import NO_ANSWER, NO_COMMAND
from edge_attn.runtimes.doctor.probes import CUDA
from edge_attn.runtimes.trt.api import OLDEST as OLDEST_TENSORRT
from edge_attn.versions import OLDEST

OK, NOTE, FAULT = "ok", "note", "fault"
Row = tuple[str, Callable[[Facts], Any], str, str]
"""Status, condition, sentence, command."""

GIB = 2**30
BUILD_MEMORY = 2 * GIB
"""Memory for building an engine of our size: TensorRT's libraries, CUDA's context, the workspace and the weights twice.
An estimate, not measured on a board."""
AMPLE_MEMORY = 4 * GIB
"""Memory with which a board, where CPU and GPU share it, needs no swap."""

# ---- commands

APT = "sudo apt update && sudo apt install"
JOIN_GROUPS = "sudo usermod -aG video,render $USER && sudo reboot"
HIDE_GPU = "CUDA_VISIBLE_DEVICES= edge-attn doctor"
DOCKER_JETSON = (
    "sudo docker run --rm -it --runtime nvidia -e NVIDIA_VISIBLE_DEVICES=all --entrypoint edge-attn IMAGE doctor"
)
INSTALL_DRIVER = "sudo ubuntu-drivers install && sudo reboot"
CUDART_PACKAGE = f"{APT} cuda-cudart-{{m.cuda[0]}}-{{m.cuda[1]}}"
CUDART_WHEEL = "{m.pip} install nvidia-cuda-runtime-cu12"
REPLACE_TENSORRT = "{m.pip} install --force-reinstall tensorrt"
REMOVE_WHEELS = "{m.pip} uninstall -y {m.tensorrt_wheels}"
OLDER_WHEEL = f"{REMOVE_WHEELS} && {{m.pip}} install tensorrt-cu{{m.cuda[0]}}"
LIBNVINFER = f"{APT} --reinstall libnvinfer10 python3-libnvinfer"
SYSTEM_VENV = "/usr/bin/python3 -m venv --system-site-packages"
SAME_VENV = f'{SYSTEM_VENV} "{{m.python[prefix]}}"'
NEW_VENV = f"{SYSTEM_VENV} .venv && .venv/bin/pip install 'edge_attn-{__version__}-py3-none-any.whl[cpu,optimize]'"
REPLACE_RTX = "{m.pip} install --force-reinstall --only-binary=:all: tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"
ORT = "{m.pip} install 'edge-attn[{m.onnxruntime_extra}]'"
REPLACE_ORT = f"{{m.pip}} uninstall -y {' '.join(ONNXRUNTIMES)} && {ORT}"
ORT_LIBRARIES = "{m.pip} install --upgrade 'onnxruntime-gpu[cuda,cudnn]'"
NO_DESKTOP = "sudo systemctl isolate multi-user.target"
SWAP = "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"
OWN_CACHE = 'sudo mkdir -p "{m.cache[folder]}" && sudo chown -R $USER "{m.cache[folder]}"'

# ---- sentences that are long or used twice

OLD_L4T = "the GPU needs JetPack 6.1 or newer: flash the board from another PC; boards before Orin run only ort-cpu"
MORE_CAUSES = "see docs/jetson.md, 'If doctor does not name your problem'"
RESTART = f"NVIDIA's driver does not work: restart the machine; if that does not help, {MORE_CAUSES}"
NO_ACCESS = f"this user may not open the GPU, or the board must be restarted; if that does not help, {MORE_CAUSES}"
NO_DRIVER = "NVIDIA's driver is missing; on another system than Ubuntu see https://www.nvidia.com/drivers"
DAMAGED = "its files are damaged: install it again"
HIDDEN_GPU = "CUDA_VISIBLE_DEVICES may hide the GPU"
NO_RUNTIME = "start the container with NVIDIA's runtime, which mounts the board's driver"
NO_CUDART = "the runtimes trt and ort-cuda need a libcudart that is not newer than the driver"
NO_WHEEL = "a TensorRT wheel does not fit a Jetson, and hides the board's own TensorRT"
NEW_WHEEL = "it was built for a newer CUDA than the driver supports, CUDA {m.cuda[0]}"
ON_HOST = "the board's driver needs this library; a container gets it from its host"
HIDDEN = "this virtual environment does not see the system's packages; the command keeps what is installed in it"
OTHER_PYTHON = "it works only with the system's Python: create an environment of that Python"
COLLISION = "two packages in one folder overwrite each other's files: use one"
NO_CODE = "onnxruntime-gpu of the package index has no code for a Jetson, and the runtime trt does not need it"
OLD_DRIVER = "the driver is older than the CUDA of this onnxruntime; elsewhere than on Ubuntu see nvidia.com/drivers"
NO_LIBRARY = "this onnxruntime-gpu lacks the libraries of its CUDA and cuDNN, or code for this GPU"
LITTLE_MEMORY = f"too little for building an engine, which needs {BUILD_MEMORY // GIB} GiB"
STOP_DESKTOP = f"{LITTLE_MEMORY}: stop the desktop, which also uses the GPU"
CLOSE_PROGRAMS = f"{LITTLE_MEMORY}: close the largest programs"
OLD_ORT = f"too old: {'.'.join(map(str, OLDEST['onnxruntime']))} or later is needed"
OLD_TENSORRT = f"too old: {'.'.join(map(str, OLDEST_TENSORRT))} or later is needed"
VERIFY = "to compare one with the model: edge-attn verify BUNDLE --runtime {m.runtimes[0]}"

ONNXRUNTIME: tuple[Row, ...] = (
    (FAULT, lambda m: len(m.onnxruntimes) > len({folder for *_, folder in m.onnxruntimes}), COLLISION, REPLACE_ORT),
    (FAULT, lambda m: NO_ANSWER in m.error("onnxruntime"), "perhaps it waits for the GPU: try without it", HIDE_GPU),
    (FAULT, lambda m: m.error("onnxruntime"), DAMAGED, REPLACE_ORT),
    (FAULT, lambda m: m.is_old_onnxruntime, OLD_ORT, "{m.pip} install --upgrade 'edge-attn[{m.onnxruntime_extra}]'"),
    (NOTE, lambda m: not m.loads("onnxruntime") and "trt" in m.runtimes, "`edge-attn optimize` needs it", ORT),
    (FAULT, lambda m: not m.loads("onnxruntime"), "the runtime ort-cpu and `edge-attn optimize` need it", ORT),
)
REPAIRS: Mapping[str, tuple[Row, ...]] = {
    "board": ((FAULT, lambda m: m.is_old_l4t, OLD_L4T, "sdkmanager"),),
    "system": (),
    "gpu": (
        (OK, lambda m: m.gpus, "", ""),
        (FAULT, lambda m: m.is_jetson and m.in_container, NO_RUNTIME, DOCKER_JETSON),
        (
            FAULT,
            lambda m: "error 100" in m.error("cuda") and m.nvidia_smi[0] == 0,
            HIDDEN_GPU,
            "unset CUDA_VISIBLE_DEVICES",
        ),
        (FAULT, lambda m: m.is_jetson, NO_ACCESS, JOIN_GROUPS),
        (FAULT, lambda m: m.nvidia_smi[0] != NO_COMMAND, RESTART, "sudo reboot"),
        (FAULT, lambda m: m.has_card, NO_DRIVER, INSTALL_DRIVER),
        (NOTE, lambda m: True, "no NVIDIA GPU: only the CPU runs bundles here", ""),
    ),
    "cuda": (
        (NOTE, lambda m: not m.gpus, "not used without a GPU", ""),
        (OK, lambda m: m.has_cudart, "", ""),
        (FAULT, lambda m: m.is_jetson, NO_CUDART, CUDART_PACKAGE),
        (FAULT, lambda m: m.loads("tensorrt"), NO_CUDART, CUDART_WHEEL),
        (NOTE, lambda m: True, NO_CUDART, CUDART_WHEEL),
    ),
    "tensorrt": (
        (NOTE, lambda m: not m.builds_engines, "not used: it needs a GPU, and on a board JetPack 6.1", ""),
        (FAULT, lambda m: m.is_jetson and not m.wheel_fits, NO_WHEEL, REMOVE_WHEELS),
        (FAULT, lambda m: m.loads("tensorrt") and not m.wheel_fits, NEW_WHEEL, OLDER_WHEEL),
        (FAULT, lambda m: m.is_old_tensorrt, OLD_TENSORRT, "{m.pip} install --upgrade tensorrt"),
        (OK, lambda m: m.loads("tensorrt"), "", ""),
        (FAULT, lambda m: m.error("tensorrt") and not m.is_jetson, DAMAGED, REPLACE_TENSORRT),
        (FAULT, lambda m: m.error("tensorrt") and m.in_container and not m.gpus, NO_RUNTIME, DOCKER_JETSON),
        (
            FAULT,
            lambda m: "libnvdla" in m.error("tensorrt") and m.l4t < (39,),
            ON_HOST,
            f"{APT} nvidia-l4t-dla-compiler",
        ),
        (FAULT, lambda m: m.error("tensorrt"), DAMAGED, LIBNVINFER),
        (FAULT, lambda m: m.bindings and m.is_system_venv, HIDDEN, SAME_VENV),
        (FAULT, lambda m: m.bindings, OTHER_PYTHON, NEW_VENV),
        (FAULT, lambda m: m.is_jetson, "NVIDIA's apt server has the Python bindings", f"{APT} python3-libnvinfer"),
        (NOTE, lambda m: True, "the runtime trt needs it", "{m.pip} install 'edge-attn[trt]'"),
    ),
    "tensorrt-rtx": ((FAULT, lambda m: m.error("tensorrt_rtx"), DAMAGED, REPLACE_RTX),),
    "onnxruntime": ONNXRUNTIME,
    "libraries": ((FAULT, lambda m: m.old_libraries, "too old", "{m.pip} install --upgrade {m.old_libraries}"),),
    "providers": (
        (NOTE, lambda m: "runs" not in m.probe("onnxruntime"), "they need onnxruntime", ""),
        (OK, lambda m: not m.cuda_provider_error, "", ""),
        (FAULT, lambda m: m.is_jetson, NO_CODE, REPLACE_ORT),
        (NOTE, lambda m: not m.gpus, f"there is no GPU for {CUDA}", ""),
        (FAULT, lambda m: "driver version" in m.cuda_provider_error, OLD_DRIVER, INSTALL_DRIVER),
        (FAULT, lambda m: True, NO_LIBRARY, ORT_LIBRARIES),
    ),
    "memory": (
        (OK, lambda m: not m.builds_engines, "", ""),
        (FAULT, lambda m: m.memory.available < BUILD_MEMORY and m.is_jetson, STOP_DESKTOP, NO_DESKTOP),
        (FAULT, lambda m: m.memory.available < BUILD_MEMORY, CLOSE_PROGRAMS, "ps aux --sort=-rss | head"),
        (OK, lambda m: not m.is_jetson or m.memory.swap or m.memory.available >= AMPLE_MEMORY, "", ""),
        (FAULT, lambda m: True, "without swap, building an engine may be killed", SWAP),
    ),
    "cache": (
        (NOTE, lambda m: m.error("cache"), "", ""),
        (OK, lambda m: not m.builds_engines, "", ""),
        (FAULT, lambda m: not m.cache["writable"], "engines need a writable folder; see --cache-dir", OWN_CACHE),
        (FAULT, lambda m: m.cache["free"] < GIB, "too little: an engine needs 1 GiB", "df -h"),
    ),
    "runtimes": (
        (OK, lambda m: m.runtimes, VERIFY, ""),
        *ONNXRUNTIME,
        (FAULT, lambda m: True, "onnxruntime is damaged", REPLACE_ORT),
    ),
}
