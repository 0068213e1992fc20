"""Comparison of an exported graph in plain ONNX Runtime with its module in torch."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edge_attn.export.shapes import example_inputs
from edge_attn.spec import GraphSpec

SIZES = {"batch": (1, 3, 32), "src": (1, 2, 7, 50, 200)}
PLAIN = """
import sys
import numpy as np, onnxruntime
with np.load(sys.argv[2]) as data:
    inputs = {name: data[name] for name in data.files}
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
outputs = {}
for case in sorted({name.partition(" ")[0] for name in inputs}):
    feed = {name.partition(" ")[2]: value for name, value in inputs.items() if name.partition(" ")[0] == case}
    for name, value in zip(names, session.run(names, feed)):
        outputs[f"{case} {name}"] = value
assert not {name.partition(".")[0] for name in sys.modules} & {"torch", "onnx", "edge_attn", "export", "runtimes"}
np.savez(sys.argv[3], **outputs)
"""


def run_torch(module: nn.Module, spec: GraphSpec, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        outputs = module(*map(torch.from_numpy, inputs))
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return {tensor.name: value.numpy() for tensor, value in zip(spec.outputs, outputs, strict=True)}


def assert_matches_in_plain_onnxruntime(graph: bytes, module: nn.Module, spec: GraphSpec, folder: Path) -> None:
    """Compare in a process with onnxruntime and numpy, without any module of this package."""
    (folder / "graph.onnx").write_bytes(graph)
    inputs, expected = {}, {}
    for case, (batch, src) in enumerate(itertools.product(*SIZES.values())):
        sizes = {"batch": batch, "src": src, "beam": 1 + case % 4, "previous_beam": 1 + case % 3, "tgt": 1 + case % 5}
        values = example_inputs(spec, sizes, seed=case)
        inputs.update({f"{case} {t.name}": value for t, value in zip(spec.inputs, values, strict=True)})
        expected.update({f"{case} {name}": value for name, value in run_torch(module, spec, values).items()})
    np.savez(folder / "inputs.npz", **inputs)
    files = [str(folder / name) for name in ("graph.onnx", "inputs.npz", "outputs.npz")]
    command = [sys.executable, "-I", "-c", PLAIN, *files]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"}, timeout=120, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "outputs.npz") as actual:
        assert set(actual.files) == expected.keys()
        for name, value in expected.items():
            assert actual[name].dtype == value.dtype, name
            if value.dtype == np.float32:
                np.testing.assert_allclose(actual[name], value, atol=2e-5, err_msg=name)
            elif not name.endswith("candidate_ids"):
                np.testing.assert_array_equal(actual[name], value, err_msg=name)
