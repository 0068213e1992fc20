"""The state of each part of a machine, as one line of text, from its facts `m`. The table in repairs.py judges it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from edge_attn.runtimes.doctor.facts import JETPACK, Facts
from edge_attn.runtimes.doctor.machine import NO_COMMAND, TIMED_OUT


def board(m: Facts) -> str:
    if not m.is_jetson:
        return "no Jetson"
    model = m.read_text("/proc/device-tree/model") or "a Jetson without a model name"
    jetpack = JETPACK.get(m.l4t[0], "unknown") if m.l4t else "unknown"
    return f"{model}, JetPack {jetpack} (L4T {'.'.join(map(str, m.l4t)) or 'unknown'})"


def system(m: Facts) -> str:
    name = re.search(r'^PRETTY_NAME="?([^"\n]+)', m.read_text("/etc/os-release"), re.MULTILINE)
    container = ", in a container" if m.in_container else ""
    python = f"Python {m.python['version']} in {m.python['prefix']}"
    return f"{name[1] if name else 'an unknown system'} on {m.python['architecture']}{container}; {python}"


def gpu(m: Facts) -> str:
    code, output = m.nvidia_smi
    version = re.search(r"(?:Driver|KMD) Version: ([\d.]+)", output)
    driver = f", driver {version[1]}" if version else ""
    if m.gpus:
        gpus = [f"{gpu['name']}, compute capability {'.'.join(map(str, gpu['capability']))}" for gpu in m.gpus]
        shared = " shared with the CPU" if m.is_jetson else ""
        return f"{'; '.join(gpus)}, {m.gpus[0]['memory'] / 2**30:.1f} GiB{shared}{driver}"
    answer = "no answer" if code == TIMED_OUT else output.partition("\n")[0]
    smi = f"; nvidia-smi: {answer}" if code not in (0, NO_COMMAND) else ""
    return f"no GPU that CUDA can use ({m.error('cuda') or 'there is no device'}){driver}{smi}"


def cuda(m: Facts) -> str:
    libraries = [f"{version // 1000}.{version % 1000 // 10}" for version in m.probe("cuda").get("runtimes", [])]
    driver = f"the driver supports CUDA {m.cuda[0]}.{m.cuda[1]}; " if m.cuda[0] else ""
    return f"{driver}libcudart {', '.join(libraries)}" if libraries else f"{driver}no libcudart"


def tensorrt(m: Facts) -> str:
    if m.bindings and not m.probe("tensorrt"):
        return f"{m.bindings[-1]} is not on the path of {m.python['executable']}"
    return _library(m, "tensorrt")


def onnxruntime(m: Facts) -> str:
    names = ", ".join(f"{name} {version}" for name, version, _ in m.onnxruntimes)
    if m.error("onnxruntime") or not m.loads("onnxruntime"):
        return f"{names or 'onnxruntime'} {_library(m, 'onnxruntime')}"
    return f"{names or m.probe('onnxruntime')['version']} ({m.probe('onnxruntime')['file']})"


def _library(m: Facts, name: str) -> str:
    """Return a library's version and file, or why it does not load."""
    if m.error(name):
        return f"does not load: {m.error(name)}"
    result = m.probe(name)
    return f"{result['version']} ({result['file']})" if m.loads(name) else "not installed"


def libraries(m: Facts) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(m.libraries.items())) or "unknown"


def providers(m: Facts) -> str:
    result = m.probe("onnxruntime")
    if "runs" not in result:
        return "none"
    reasons = [f"not on {provider}: {reason}" for provider, reason in result["reasons"].items()]
    return "; ".join([f"a graph runs on {', '.join(result['runs']) or 'none'}", *reasons])


def memory(m: Facts) -> str:
    limit = " (the container's limit)" if m.memory.limited else ""
    swap = f"{m.memory.swap / 2**30:.1f} GiB" if m.memory.swap else "none"
    total = f"{m.memory.total / 2**30:.1f} GiB"
    return f"{m.memory.available / 2**30:.1f} GiB available{limit} of {total}, swap {swap}"


def cache(m: Facts) -> str:
    return m.error("cache") or f"{m.cache['folder']}: {m.cache['free'] / 2**30:.1f} GiB free on its disk"


FINDINGS: Mapping[str, Callable[[Facts], str]] = {
    "board": board,
    "system": system,
    "gpu": gpu,
    "cuda": cuda,
    "tensorrt": tensorrt,
    "tensorrt-rtx": lambda m: _library(m, "tensorrt_rtx"),
    "onnxruntime": onnxruntime,
    "libraries": libraries,
    "providers": providers,
    "memory": memory,
    "cache": cache,
    "runtimes": lambda m: f"ready: {', '.join(m.runtimes)}" if m.runtimes else "none is ready",
}
"""The checks, in the order in which their faults must be repaired."""
