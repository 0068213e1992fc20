"""Tests of fold_for_inference: equal results, with some sums computed in advance."""

from __future__ import annotations

import pytest
import torch

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.models.folding import FoldedSeq2Seq, fold_for_inference
from edge_attn.models.seq2seq import Seq2Seq

torch.set_num_threads(1)

VOCAB = 11
SMALL = {"embedding": 6, "encoder_hidden": 4, "decoder_hidden": 8, "attention_size": 6, "heads": 2}
KINDS = ("additive", "dot", "general", "scaled", "location", "none")
SOURCE, LENGTH = torch.tensor([[5, 6, 7, 3], [8, 3, 0, 0], [0, 0, 0, 0]]), torch.tensor([4, 2, 0])
TARGET = torch.tensor([[2, 4, 5, 6], [2, 9, 9, 3], [2, 7, 3, 0]])


def model(**options) -> Seq2Seq:
    torch.manual_seed(3)
    return Seq2Seq(Seq2SeqConfig(**options, **SMALL), VOCAB, VOCAB).double().eval()


@torch.no_grad()
def steps(stepped) -> torch.Tensor:
    """Return logits, weights and states of every step along TARGET, in one tensor."""
    memory, state = stepped.encode(SOURCE, LENGTH)
    outputs = []
    for i in range(TARGET.shape[1]):
        logits, weights, state = stepped.step(TARGET[:, i : i + 1], memory, state)
        outputs += [logits, *state.values()] + ([] if weights is None else [weights])
    return torch.cat([tensor.flatten() for tensor in outputs])


@pytest.mark.parametrize("feeding", [False, True])
@pytest.mark.parametrize(("attend", "layers"), [("before", 1), ("after", 2)])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("attention", KINDS)
def test_folding_changes_only_the_order_of_sums(attention, cell, attend, layers, feeding):
    plain = model(attention=attention, cell=cell, attend=attend, decoder_layers=layers, input_feeding=feeding)
    folded = fold_for_inference(plain)
    assert isinstance(folded, FoldedSeq2Seq)
    torch.testing.assert_close(steps(folded), steps(plain), rtol=0, atol=1e-13)


def test_wrong_fold_changes_the_outputs():
    plain = model()
    folded = FoldedSeq2Seq(plain)
    folded.get_buffer("context")[3, 2] += 1e-6
    assert (steps(folded) - steps(plain)).abs().max() > 1e-9


def test_folding_does_not_change_the_model():
    plain = model()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    fold_for_inference(plain).get_buffer("cell_embedded").zero_()
    assert before.keys() == plain.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())
