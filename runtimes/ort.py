"""ONNX Runtime on a CPU. Values between two steps stay OrtValues; only what the search asks for becomes numpy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from edge_attn.bundle import Bundle
from edge_attn.errors import BundleError
from edge_attn.spec import GraphSpec, Value

FROM_ORT = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


class OrtCpu:
    """Every graph of a bundle in ONNX Runtime's CPU provider."""

    name = "ort-cpu"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.graphs: Mapping[str, GraphSpec] = bundle.manifest.graphs
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        self._sessions = {}
        for name, spec in self.graphs.items():
            where = f"{bundle.path}: {spec.file}"
            try:
                session = ort.InferenceSession(bundle.read(spec.file), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime's errors share no class but Exception
                raise BundleError(f"{where} is not a graph that ONNX Runtime loads: {error}") from error
            _check(where, session, spec)
            self._sessions[name] = session
        self.provider = ", ".join(sorted({p for s in self._sessions.values() for p in s.get_providers()}))
        self._outputs = {name: [tensor.name for tensor in spec.outputs] for name, spec in self.graphs.items()}

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        session, names = self._sessions[graph], self._outputs[graph]
        binding = session.io_binding()  # run_with_ort_values does the same, and takes a sixth longer
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                value = ort.OrtValue.ortvalue_from_numpy(value)
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        return dict(zip(names, binding.get_outputs(), strict=True))

    def numpy(self, value: Value) -> np.ndarray:
        result: np.ndarray = value.numpy()
        return result


def _check(where: str, session: ort.InferenceSession, spec: GraphSpec) -> None:
    """The graph's inputs and outputs are those of the manifest."""
    for kind, found, expected in (
        ("input", session.get_inputs(), spec.inputs),
        ("output", session.get_outputs(), spec.outputs),
    ):
        has = {tensor.name: (FROM_ORT.get(tensor.type, tensor.type), list(tensor.shape)) for tensor in found}
        wants = {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in expected}
        for name in [*wants, *has]:
            if has.get(name) != wants.get(name):
                raise BundleError(
                    f"{where} does not fit the manifest: {kind} {name} is {_show(has.get(name))}, "
                    f"the manifest says {_show(wants.get(name))}"
                )


def _show(tensor: tuple[str, list[object]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} ({', '.join(map(str, tensor[1]))})"
