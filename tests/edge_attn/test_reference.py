"""Tests of edge_attn.reference: the torch model as a runtime, in fp32 and fp64."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: a device needs none")

import torch

from edge_attn.checkpoint import load
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.beam_search import search
from edge_attn.decoding.options import SearchConfig
from edge_attn.models.folding import fold_for_inference
from edge_attn.parity.recorder import record_translation
from edge_attn.reference import CANDIDATES, ModelReferences, TorchRuntime, open_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loaded(toy_checkpoint):
    return load(toy_checkpoint)


def encoder_outputs(reference: TorchRuntime) -> dict[str, np.ndarray]:
    source, length = np.array([[5, 6, 7, 3], [8, 3, 0, 0]]), np.array([4, 2])
    outputs = reference.run("encoder", {"source": source, "source_length": length})
    return {name: reference.numpy(value) for name, value in outputs.items()}


@pytest.mark.parametrize("folded", [False, True])
def test_reference_matches_the_model(loaded, folded):
    model, _, _ = loaded
    outputs = encoder_outputs(ModelReferences(model).deployed if folded else ModelReferences(model).reference)
    with torch.no_grad():
        memory, state = (fold_for_inference(model) if folded else model).encode(
            torch.tensor([[5, 6, 7, 3], [8, 3, 0, 0]]), torch.tensor([4, 2])
        )
    expected = {f"memory.{name}": value for name, value in memory.items()}
    expected.update({f"state.{name}": value for name, value in state.items()})
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(outputs[name], value.numpy())


def test_fp64_differs_only_by_rounding(loaded):
    model, _, _ = loaded
    references = ModelReferences(model)
    single, double = references.reference, references.precise
    assert single.provider.endswith("fp32")
    assert double.provider.endswith("fp64")
    assert next(model.parameters()).dtype == torch.float32  # the model itself is not changed
    fp32, fp64 = encoder_outputs(single)["memory.keys"], encoder_outputs(double)["memory.keys"]
    assert fp64.dtype == np.float64
    assert 0 < np.abs(fp32 - fp64).max() < 1e-5
    assert {tensor.dtype for tensor in double.graphs["step"].outputs} == {"float64", "int64"}


def test_search_runs_on_the_reference(loaded):
    model, text, _ = loaded
    source = text.encode_source("the small cat sees a dog")
    [[best]] = search(ModelReferences(model).reference, [source], SearchConfig(), True)
    assert text.target.decode(best.tokens) == "le chat petit voit un chien"
    assert best.alignment.argmax(1).tolist()[:6] == [0, 2, 1, 3, 4, 5]


def test_checkpoint_opens_as_reference(toy_checkpoint):
    live = open_checkpoint(toy_checkpoint, options=RuntimeOptions(threads=1))
    reference, text, max_source = live.references.reference, live.text, live.max_source
    assert reference.name == "torch"
    assert text.kind == "words"
    assert max_source == 20
    assert reference.graphs["step"].outputs[0].shape == ("batch", "beam", CANDIDATES)


@pytest.mark.parametrize(("candidates", "beam"), [(16, 5), (4, 3), (2, 1)])
def test_recording_uses_the_widest_beam_of_the_bundle(toy_checkpoint, candidates, beam):
    live = open_checkpoint(toy_checkpoint)
    references = ModelReferences(live.references.model, candidates)
    golden = record_translation(references, live.text, ["a cat sees the dog"], 20)
    assert golden.search.beam == golden.search.n_best == beam
    assert len(golden.n_best[0]) == beam
    assert golden.greedy[0].text == "un chat voit le chien"
