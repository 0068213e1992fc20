"""The runtime `ort-cuda`: ONNX Runtime on an NVIDIA GPU. States and memory stay on the device.

Without a GPU the tests cover the errors of the CUDA provider, and everything else with the CPU provider in its place.
Tests marked `gpu` need a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.errors import BundleError, MissingExtraError, NotTestedError
from edge_attn.spec import GraphSpec, Value

try:
    import onnxruntime as ort
except ModuleNotFoundError as error:
    raise MissingExtraError("onnxruntime", "gpu") from error

from edge_attn.runtimes.ort.cpu import onnxruntime_packages, open_session, run_bound, session_settings
from edge_attn.runtimes.ort.run_errors import OutputShapes, run_error
from edge_attn.runtimes.ort.watchdog import Watchdog

INSTALL = "pip install 'edge-attn[gpu]'"
FAILURE = re.compile(r"(?:CUDA|CUBLAS|CUDNN) failure \d+: [^;]*|Failed to allocate memory[^;\n]*")
"""The relevant part of ONNX Runtime's error when the GPU fails. The rest names its source files."""
ADVICE = {
    "out of memory": "free memory on the GPU, or use a smaller batch",
    "Failed to allocate": "free memory on the GPU, or use a smaller batch",
    "no kernel image": "this onnxruntime was not built for this GPU: install a build that was, or use the runtime trt",
}


class OrtCuda:
    """All graphs of a bundle in ONNX Runtime's CUDA provider: the target's graphs, or in fp32 the portable ones."""

    name = "ort-cuda"
    max_batch: int | None = None
    max_beam: int | None = None
    device = "cuda"
    required_provider = "CUDAExecutionProvider"
    provider_options: Mapping[str, str] = {"use_tf32": "0"}
    """Without this, the provider rounds factors of fp32 products to ten bits of mantissa."""

    def __init__(self, bundle: Bundle, options: RuntimeOptions = DEFAULT) -> None:
        self.precision = options.precision
        self.graphs = _graphs(bundle, self.name, options.precision)
        settings = session_settings(options)
        settings.use_deterministic_compute = True
        fault = provider_fault(self.required_provider) or self._load(bundle, settings)
        if fault is not None:
            if not options.allow_fallback:
                raise NotTestedError(f"{self.name} does not run here: {fault}; or run on the CPU with `allow_fallback`")
            self.device = "cpu"
            self._sessions = _open(bundle, self.graphs, settings, {})
        self.provider = ", ".join(dict.fromkeys(p for s in self._sessions.values() for p in s.get_providers()))
        if fault is not None:
            self.provider += f" in place of {self.required_provider}"
        self._outputs = {name: [tensor.name for tensor in spec.outputs] for name, spec in self.graphs.items()}
        self._where = {name: f"{bundle.path}: {spec.file}" for name, spec in self.graphs.items()}
        self._shapes = {name: OutputShapes(self._where[name], spec) for name, spec in self.graphs.items()}
        self._watchdog = Watchdog(options.max_run_seconds)

    def _load(self, bundle: Bundle, settings: ort.SessionOptions) -> str | None:
        """Open the sessions in the required provider. Return None, or the reason why it cannot be used."""
        try:
            self._sessions = _open(bundle, self.graphs, settings, {self.required_provider: dict(self.provider_options)})
        except BundleError as error:
            failure = FAILURE.search(str(error.__cause__))
            if failure is None:
                raise
            return _with_advice(failure[0])
        if all(self.required_provider in session.get_providers() for session in self._sessions.values()):
            return None
        return f"ONNX Runtime {ort.__version__} does not use {self.required_provider}; run: edge-attn doctor"

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Run a graph. Its outputs stay on the device.

        Raises:
            NotTestedError: too little memory, or ONNX Runtime was not built for this GPU.
            BundleError: the graph does not run, takes too long, or returns other shapes than those described.
        """
        run = self._watchdog.begin()
        try:
            outputs = run_bound(self._sessions[graph], self._outputs[graph], inputs, self.device, run)
        except Exception as error:  # ONNX Runtime's errors share no class but Exception
            failure = FAILURE.search(str(error))
            if failure is None:
                raise run_error(self._where[graph], error, self._watchdog.seconds) from error
            raise NotTestedError(f"the GPU does not run the graph {graph!r}: {_with_advice(failure[0])}") from error
        finally:
            self._watchdog.end(run)
        self._shapes[graph].check(inputs, outputs)
        return outputs

    def numpy(self, value: Value) -> np.ndarray:
        result: np.ndarray = value.numpy()
        return result

    def select_rows(self, value: Value, index: np.ndarray) -> Value | None:
        """Return None, because a selection of rows would copy the value to the host."""
        return None

    def close(self) -> None:
        """Free weights and memory arenas on the device."""
        self._sessions.clear()


def _open(
    bundle: Bundle, graphs: Mapping[str, GraphSpec], settings: ort.SessionOptions, first: Mapping[str, dict[str, str]]
) -> dict[str, ort.InferenceSession]:
    """Open sessions that use the providers `first`, and the CPU for the other nodes."""
    providers = list({**first, "CPUExecutionProvider": {}}.items())
    return {name: open_session(bundle, spec, settings, providers) for name, spec in graphs.items()}


def _graphs(bundle: Bundle, target: str, precision: str) -> dict[str, GraphSpec]:
    """Return the graphs of the target, or the portable ones if the bundle has none of this precision."""
    if precision == bundle.manifest.precision and f"{target}-{precision}" not in bundle.manifest.targets:
        return bundle.manifest.graphs
    return bundle.target(target, precision).graphs


def _with_advice(failure: str) -> str:
    advice = next((todo for words, todo in ADVICE.items() if words in failure), "run: edge-attn doctor")
    return f"{failure.strip()}; {advice}"


# ---- availability of a provider


def provider_fault(provider: str) -> str | None:
    """Return the reason why ONNX Runtime cannot load `provider`, and the next command, or None if it can.

    No session is opened, because a session without the provider only prints a warning.
    """
    if provider not in ort.get_available_providers():
        return f"ONNX Runtime {ort.__version__} has no {provider}; {_right_package(onnxruntime_packages())}"
    _preload()
    missing = _library_fault(provider)
    if missing is None:
        return None
    todo = "run: pip install 'onnxruntime-gpu[cuda,cudnn]'"
    if "libcuda.so" in missing:
        todo = "it is part of the NVIDIA driver: this machine has no GPU, or no driver for it"
    return f"ONNX Runtime's {provider} does not load: {missing}; {todo}"


def _right_package(installed: list[str]) -> str:
    if platform.machine() == "aarch64":
        todo = "use the runtime trt, or an onnxruntime that was built for this board"
        return f"{' and '.join(installed)} overwrite each other; {todo}" if len(installed) > 1 else todo
    remove = f"pip uninstall -y {' '.join(installed)} && " if installed else ""
    if len(installed) > 1:
        return f"{' and '.join(installed)} overwrite each other, so remove both; run: {remove}{INSTALL}"
    return f"run: {remove}{INSTALL}"


def _preload() -> None:
    """Load the CUDA libraries of Python packages, which the system's loader does not search."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints missing libraries
        if hasattr(ort, "preload_dlls"):  # since 1.21
            ort.preload_dlls()


def _library_fault(provider: str) -> str | None:
    """Return the loader's error for the provider's library, or None if it loads or does not exist."""
    folder = Path(ort.__file__).parent / "capi"
    library = folder / f"libonnxruntime_providers_{provider.removesuffix('ExecutionProvider').lower()}.so"
    if not library.is_file():
        return None
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return None
