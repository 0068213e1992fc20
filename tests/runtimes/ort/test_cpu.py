"""The runtime `ort-cpu`, and graphs that differ from the manifest."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.decoder import StepDecoder
from edge_attn.errors import BundleError
from edge_attn.runtimes.base import open_runtime
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.spec import GraphSpec, TensorSpec
from edge_attn.text.tokenizers import BOS


@pytest.fixture
def bundle(toy_bundle) -> Bundle:
    return Bundle.open(toy_bundle)


def with_graph(bundle: Bundle, name: str, **changes: object) -> Bundle:
    graphs = {**bundle.manifest.graphs, name: dataclasses.replace(bundle.manifest.graphs[name], **changes)}
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, graphs=graphs), bundle.files())


def test_step_outputs_are_those_of_the_manifest(bundle):
    runtime = OrtCpu(bundle, options=RuntimeOptions(threads=1))
    assert runtime.provider == "CPUExecutionProvider"
    decoding = StepDecoder(runtime, [[5, 6, 3], [5, 3]])
    outputs = decoding.step(np.full((2, 1), BOS), np.zeros((2, 1), np.int64))
    assert list(outputs) == [tensor.name for tensor in runtime.graphs["step"].outputs]
    again = decoding.step(np.full((2, 1), 5), np.zeros((2, 1), np.int64))
    assert not np.array_equal(runtime.numpy(again["candidates"]), runtime.numpy(outputs["candidates"]))
    log_probs = runtime.numpy(outputs["log_probs"])
    assert log_probs.shape == (2, 1, len(bundle.text().target))
    np.testing.assert_allclose(np.exp(log_probs).sum(2), 1.0, atol=1e-5)


TENSOR = TensorSpec("tokens", "int64", ("batch", "beam"))


@pytest.mark.parametrize(
    ("tensor", "difference"),
    [
        (dataclasses.replace(TENSOR, dtype="int32"), "input tokens is int64 (batch, beam), expected int32"),
        (dataclasses.replace(TENSOR, shape=("batch", 1)), "is int64 (batch, beam), expected int64 (batch, 1)"),
        (dataclasses.replace(TENSOR, name="words"), "input words is absent, expected int64 (batch, beam)"),
        (None, "input tokens is int64 (batch, beam), expected absent"),
    ],
)
def test_inputs_that_differ_from_the_manifest_are_rejected(bundle, tensor, difference):
    specs = bundle.manifest.graphs["step"].inputs
    assert specs[0].name == "tokens"
    inputs = (tensor, *specs[1:]) if tensor else specs[1:]
    with pytest.raises(BundleError) as caught:
        OrtCpu(with_graph(bundle, "step", inputs=inputs))
    assert difference in str(caught.value)
    assert "step.onnx does not fit the manifest" in str(caught.value)
    assert caught.value.exit_code == 4


def test_outputs_that_differ_from_the_manifest_are_rejected(bundle):
    outputs = bundle.manifest.graphs["encoder"].outputs
    with pytest.raises(BundleError, match=r"does not fit the manifest: output .* expected absent"):
        OrtCpu(with_graph(bundle, "encoder", outputs=outputs[1:]))


@pytest.mark.parametrize("file", ["text/source.json", "golden/golden.npz"])
def test_file_that_is_no_graph_is_rejected(bundle, file):
    with pytest.raises(BundleError, match=f"{file} is not a graph that ONNX Runtime loads"):
        OrtCpu(with_graph(bundle, "encoder", file=file))


@pytest.mark.parametrize("missing", ["encoder", "step"])
def test_bundle_without_a_required_graph_is_rejected(bundle, missing):
    graphs = {name: graph for name, graph in bundle.manifest.graphs.items() if name != missing}
    part = Bundle(bundle.path, dataclasses.replace(bundle.manifest, graphs=graphs), bundle.files())
    with pytest.raises(BundleError, match=f"an encoder-decoder bundle needs the graph '{missing}'"):
        open_runtime(part, "ort-cpu")


@pytest.mark.parametrize(
    ("graph", "missing"),
    [("step", "candidates"), ("step", "log_probs"), ("step", "next_state.hidden.0"), ("encoder", "memory.keys")],
)
def test_bundle_without_a_required_tensor_is_rejected(bundle, monkeypatch, graph, missing):
    """Graph and manifest agree with each other, but are not an encoder-decoder model."""
    spec = bundle.manifest.graphs[graph]
    outputs = tuple(tensor for tensor in spec.outputs if tensor.name != missing)
    assert len(outputs) < len(spec.outputs)
    monkeypatch.setattr("edge_attn.runtimes.ort.cpu._check", lambda *_: None)
    with pytest.raises(BundleError, match=f"the graph '{graph}' has no output '{missing}'"):
        open_runtime(with_graph(bundle, graph, outputs=outputs), "ort-cpu")


def test_tensor_spec_text_contains_its_shape():
    spec = GraphSpec("a.onnx", (TENSOR,), ())
    assert [str(tensor) for tensor in spec.inputs] == ["tokens int64 (batch, beam)"]
