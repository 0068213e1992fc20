"""The runtime `ort-cpu`: ONNX Runtime on a CPU. Its values are numpy arrays."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.errors import BundleError, NotTestedError
from edge_attn.runtimes.ort.run_errors import OutputShapes, run_error
from edge_attn.runtimes.ort.watchdog import Watchdog
from edge_attn.spec import GraphSpec, Value

TOO_NEW = re.compile(r"Unsupported model IR version|is till opset \d+|is under development")
"""ONNX Runtime's errors for an IR version or an opset that is newer than its own."""
FROM_ORT = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


class OrtCpu:
    """All graphs of a bundle in ONNX Runtime's CPU provider."""

    name = "ort-cpu"
    max_batch: int | None = None
    max_beam: int | None = None

    def __init__(self, bundle: Bundle, options: RuntimeOptions = DEFAULT) -> None:
        self.graphs: Mapping[str, GraphSpec] = bundle.manifest.graphs
        self.precision = bundle.manifest.precision
        settings = session_settings(options)
        if self.precision == "int8":  # fused kernels round differently, and one of 1.23 is wrong
            settings.add_session_config_entry("session.disable_quant_qdq", "1")
        self._sessions = {
            name: open_session(bundle, spec, settings, ["CPUExecutionProvider"]) for name, spec in self.graphs.items()
        }
        self.provider = ", ".join(sorted({p for s in self._sessions.values() for p in s.get_providers()}))
        self._outputs = {name: [tensor.name for tensor in spec.outputs] for name, spec in self.graphs.items()}
        self._where = {name: f"{bundle.path}: {spec.file}" for name, spec in self.graphs.items()}
        self._shapes = {name: OutputShapes(self._where[name], spec) for name, spec in self.graphs.items()}
        self._watchdog = Watchdog(options.max_run_seconds)

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Run a graph.

        Raises:
            BundleError: the graph does not run, takes too long, or returns other shapes than those described.
        """
        names = self._outputs[graph]  # arrays, because bound OrtValues take 35 us longer per step
        run = self._watchdog.begin()
        try:
            values = self._sessions[graph].run(names, inputs, run)
        except Exception as error:  # ONNX Runtime's errors share no class but Exception
            raise run_error(self._where[graph], error, self._watchdog.seconds) from error
        finally:
            self._watchdog.end(run)
        outputs = dict(zip(names, values, strict=True))
        self._shapes[graph].check(inputs, outputs)
        return outputs

    def numpy(self, value: Value) -> np.ndarray:
        result: np.ndarray = value
        return result

    def select_rows(self, value: Value, index: np.ndarray) -> Value | None:
        rows: np.ndarray = value[index]
        return rows

    def close(self) -> None:
        """Free the sessions with their weights and memory arenas."""
        self._sessions.clear()


def onnxruntime_packages() -> list[str]:
    """Return the installed packages that contain the module `onnxruntime`. Two of them overwrite each other."""
    return sorted(set(importlib.metadata.packages_distributions().get("onnxruntime", [])))


def session_settings(options: RuntimeOptions) -> ort.SessionOptions:
    """Return the session options of a runtime.

    Raises:
        NotTestedError: the module is empty, because pip removed one of two packages that contain it.
    """
    if not hasattr(ort, "InferenceSession"):
        packages = onnxruntime_packages() or ["onnxruntime"]
        raise NotTestedError(
            "the module onnxruntime is empty: another package that contains it was removed; "
            f"run: pip install --force-reinstall --no-deps {packages[-1]}"
        )
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # an error is raised, and is not printed too
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
    return settings


def open_session(
    bundle: Bundle, spec: GraphSpec, settings: ort.SessionOptions, providers: Sequence[Any]
) -> ort.InferenceSession:
    """Open a session of one graph in the first of `providers` that loads.

    Args:
        bundle: the bundle.
        spec: the graph's entry in the manifest.
        settings: session options.
        providers: execution providers, or pairs with their options.

    Raises:
        BundleError: ONNX Runtime rejects the graph, or its inputs and outputs differ from the manifest.
        NotTestedError: this ONNX Runtime is older than the graph's format.
    """
    where = f"{bundle.path}: {spec.file}"
    try:  # without fallback, because ONNX Runtime prints to standard output when it falls back to the CPU
        session = ort.InferenceSession(bundle.read(spec.file), settings, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors share no class but Exception
        if TOO_NEW.search(str(error)):
            raise NotTestedError(
                f"onnxruntime {ort.__version__} is too old for {where}: {error}; run: pip install --upgrade onnxruntime"
            ) from error
        raise BundleError(f"{where} is not a graph that ONNX Runtime loads: {error}") from error
    _check(where, session, spec)
    return session


def run_bound(
    session: ort.InferenceSession,
    outputs: Sequence[str],
    inputs: Mapping[str, Value],
    device: str,
    options: ort.RunOptions | None = None,
) -> dict[str, Value]:
    """Run a session with bound inputs and outputs.

    Args:
        session: the session.
        outputs: names of the outputs.
        inputs: OrtValues or arrays by name.
        device: device of the outputs, `cpu` or `cuda`.
        options: options of the run.

    Returns:
        The outputs by name, as OrtValues.
    """
    binding = session.io_binding()  # run_with_ort_values takes a sixth longer
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            value = ort.OrtValue.ortvalue_from_numpy(value)
        binding.bind_ortvalue_input(name, value)
    for name in outputs:
        binding.bind_output(name, device)
    session.run_with_iobinding(binding, options)
    return dict(zip(outputs, binding.get_outputs(), strict=True))


def _check(where: str, session: ort.InferenceSession, spec: GraphSpec) -> None:
    """Check that the inputs and outputs of the graph are those of the manifest."""
    for kind, tensors, specs in (
        ("input", session.get_inputs(), spec.inputs),
        ("output", session.get_outputs(), spec.outputs),
    ):
        for tensor in tensors:
            if tensor.type not in FROM_ORT:
                raise BundleError(
                    f"{where}: {kind} {tensor.name} has the type {tensor.type}, expected {' or '.join(FROM_ORT)}"
                )
        actual = {tensor.name: (FROM_ORT[tensor.type], list(tensor.shape)) for tensor in tensors}
        expected = {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in specs}
        for name in [*expected, *actual]:
            if actual.get(name) != expected.get(name):
                raise BundleError(
                    f"{where} does not fit the manifest: {kind} {name} is {_show(actual.get(name))}, "
                    f"expected {_show(expected.get(name))}"
                )


def _show(tensor: tuple[str, list[object]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} ({', '.join(map(str, tensor[1]))})"
