"""Tests of export_module with modules as users write them: the graph is torch's at sizes that were not traced."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from user_modules import CASES

import edge_attn
from edge_attn.export.binding import flatten

torch.set_num_threads(1)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if case.quick else pytest.mark.slow) for name, case in CASES.items()]
)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
def test_user_module_is_right_at_every_size(tmp_path, capfd, name):
    case = CASES[name]
    torch.manual_seed(8)
    module = case.make()
    path = tmp_path / "module.onnx"
    spec = edge_attn.export_module(module, path, case.inputs, case.outputs, **case.options)
    assert capfd.readouterr() == ("", "")
    assert len(spec.shapes) >= 2
    assert spec.exporter == ("TorchScript" if isinstance(module, torch.jit.ScriptModule) else "torch.export")
    model = onnx.load_model(path)
    assert not model.functions
    assert [value.name for value in model.graph.output] == list(case.outputs)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for inputs in case.calls():
        with torch.no_grad():
            expected = case.call(module, *inputs) if case.call else module(*inputs)
        actual = session.run(None, {t.name: v.numpy() for t, v in zip(spec.inputs, inputs, strict=True)})
        for value, (_, reference) in zip(actual, flatten(expected), strict=True):
            atol = 2e-3 if value.dtype == np.float16 else 2e-5
            np.testing.assert_allclose(value, reference.numpy(), rtol=1e-5, atol=atol)
            assert value.dtype == reference.numpy().dtype


def test_table_has_modules_of_each_kind():
    assert len(CASES) >= 40
