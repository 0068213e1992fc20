"""The reference is the torch model itself, in fp32 or fp64, behind the seam of every runtime."""

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
    found = reference.run("encoder", {"source": source, "source_length": length})
    return {name: reference.numpy(value) for name, value in found.items()}


@pytest.mark.parametrize("folded", [False, True])
def test_it_says_what_the_model_says(loaded, folded):
    model, _, _ = loaded
    found = encoder_outputs(ModelReferences(model).deployed if folded else ModelReferences(model).reference)
    with torch.no_grad():
        memory, state = (fold_for_inference(model) if folded else model).encode(
            torch.tensor([[5, 6, 7, 3], [8, 3, 0, 0]]), torch.tensor([4, 2])
        )
    expected = {f"memory.{name}": value for name, value in memory.items()}
    expected.update({f"state.{name}": value for name, value in state.items()})
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.numpy())


def test_fp64_is_the_same_model_with_less_noise(loaded):
    model, _, _ = loaded
    references = ModelReferences(model)
    single, double = references.reference, references.precise
    assert single.provider.endswith("fp32")
    assert double.provider.endswith("fp64")
    assert next(model.parameters()).dtype == torch.float32  # the model given was not changed
    one, other = encoder_outputs(single), encoder_outputs(double)
    assert other["memory.keys"].dtype == np.float64
    apart = np.abs(one["memory.keys"] - other["memory.keys"]).max()
    assert 0 < apart < 1e-5
    assert {tensor.dtype for tensor in double.graphs["step"].outputs} == {"float64", "int64"}


def test_the_search_runs_on_it(loaded):
    model, text, _ = loaded
    source = text.encode_source("the small cat sees a dog")
    [[best]] = search(ModelReferences(model).reference, [source], SearchConfig(), True)
    assert text.target.decode(best.tokens) == "le chat petit voit un chien"
    assert best.alignment.argmax(1).tolist()[:6] == [0, 2, 1, 3, 4, 5]


def test_a_checkpoint_opens_as_a_reference(toy_checkpoint):
    live = open_checkpoint(toy_checkpoint, options=RuntimeOptions(threads=1))
    reference, text, longest = live.references.reference, live.text, live.max_source
    assert reference.name == "torch"
    assert text.kind == "words"
    assert longest == 20
    assert reference.graphs["step"].outputs[0].shape == ("batch", "beam", CANDIDATES)


@pytest.mark.parametrize(("candidates", "beam"), [(16, 5), (4, 3), (2, 1)])
def test_a_recording_searches_as_widely_as_the_bundle_can(toy_checkpoint, candidates, beam):
    live = open_checkpoint(toy_checkpoint)
    references = ModelReferences(live.references.model, candidates)
    said = record_translation(references, live.text, ["a cat sees the dog"], 20)
    assert said.search.beam == said.search.n_best == beam
    assert len(said.n_best[0]) == beam
    assert said.greedy[0].text == "un chat voit le chien"
