"""Tests of Seq2Seq for every combination of options: a pass equals its steps, alone, in a batch and in a beam."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.errors import ConfigError
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.registry import ATTENTIONS
from edge_attn.text.tokenizers import BOS, EOS, PAD

SOURCES = [[5, 6, 7, 4, EOS], [8, EOS], [4, 9, 4, EOS]]
TARGETS = [[BOS, 5, 9, 4], [BOS, 7, PAD, PAD], [BOS, 6, 6, PAD]]
VOCAB = 11
SMALL = {"embedding": 6, "encoder_hidden": 4, "decoder_hidden": 8, "attention_size": 6, "heads": 2}

COMBINATIONS = [
    Seq2SeqConfig(
        attention=attention,
        cell=cell,
        attend=attend,
        input_feeding=feeding,
        bridge=bridge,
        tied_output=i % 2 == 0,
        encoder_layers=1 + i // 2 % 2,
        decoder_layers=1 + i // 4 % 2,
        **SMALL,
    )
    for i, (attention, cell, attend, feeding, bridge) in enumerate(
        itertools.product(ATTENTIONS, ("gru", "lstm"), ("before", "after"), (False, True), ("none", "linear"))
    )
]


def name(config: Seq2SeqConfig) -> str:
    parts = [config.attention, config.cell, config.attend, config.bridge]
    parts += [f"{config.encoder_layers}+{config.decoder_layers}"]
    return "-".join([*parts, *["feed"] * config.input_feeding, *["tied"] * config.tied_output])


@pytest.fixture(params=COMBINATIONS, ids=name)
def config(request) -> Seq2SeqConfig:
    return request.param


@pytest.fixture
def model(config) -> Seq2Seq:
    torch.manual_seed(3)
    return Seq2Seq(config, VOCAB, VOCAB).eval()


def padded(rows: list[list[int]], pad: int = PAD) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])


def max_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def test_pass_equals_its_steps(model):
    source, lengths = padded(SOURCES)
    target = torch.tensor(TARGETS)
    with torch.no_grad():
        full_pass = model(source, lengths, target)
        memory, state = model.encode(source, lengths)
        assert all(tensor.shape[:2] == (3, 1) for tensor in state.values())
        for i in range(target.shape[1]):
            features, weights, next_state = model.decode(model.embedding(target[:, i : i + 1]), memory, state)
            assert max_difference(features[:, 0], full_pass[:, i]) <= 1e-6
            assert next_state.keys() == state.keys()
            assert all(next_state[n].shape == state[n].shape for n in state)
            state = next_state
            if weights is not None:
                mask = torch.arange(source.shape[1]) < lengths[:, None]
                assert max_difference(weights.sum(-1), torch.ones(3, 1)) <= 1e-6
                assert not weights[:, 0][~mask].any()
    assert (weights is None) == (model.config.attention == "none")
    logits = model.logits(full_pass)
    assert logits.shape == (3, 4, VOCAB)
    assert logits.isfinite().all()


def test_features_ignore_later_symbols(model):
    source, lengths = padded(SOURCES)
    target = torch.tensor(TARGETS)
    with torch.no_grad():
        full_pass = model(source, lengths, target)
        target[:, 2:] = 10
        changed = model(source, lengths, target)
    assert max_difference(changed[:, :2], full_pass[:, :2]) == 0.0
    assert max_difference(changed[:, 2:], full_pass[:, 2:]) > 1e-4


def test_sentence_is_independent_of_its_batch(model):
    source, lengths = padded(SOURCES)
    target = torch.tensor(TARGETS)
    with torch.no_grad():
        batched = model(source, lengths, target)
        for i, row in enumerate(SOURCES):
            alone = model(*padded([row]), target[i : i + 1])
            assert max_difference(alone[0], batched[i]) <= 1e-6


def test_padding_does_not_matter(model):
    target = torch.tensor(TARGETS)
    with torch.no_grad():
        assert max_difference(model(*padded(SOURCES, pad=9), target), model(*padded(SOURCES), target)) <= 1e-6


def test_every_source_position_matters(model):
    """A model that ignores its source would pass the tests above."""
    target = torch.tensor(TARGETS)
    with torch.no_grad():
        full_pass = model(*padded(SOURCES), target)
        for i, j in ((0, 0), (0, 3), (1, 0), (2, 1)):
            changed = [list(row) for row in SOURCES]
            changed[i][j] = 10
            other = model(*padded(changed), target)
            differs = [max_difference(other[k], full_pass[k]) > 1e-5 for k in range(3)]
            assert differs == [k == i for k in range(3)]


def test_beams_are_query_positions(model):
    source, lengths = padded(SOURCES)
    torch.manual_seed(5)
    with torch.no_grad():
        memory, state = model.encode(source, lengths)
        state = {n: torch.randn(3, 3, tensor.shape[-1]) for n, tensor in state.items()}
        embedded = model.embedding(torch.randint(4, VOCAB, (3, 3)))
        batched = model.decode(embedded, memory, state)
        for k in range(3):
            hypothesis = {n: tensor[:, k : k + 1] for n, tensor in state.items()}
            features, weights, next_state = model.decode(embedded[:, k : k + 1], memory, hypothesis)
            assert max_difference(features, batched[0][:, k : k + 1]) <= 1e-6
            for n in next_state:
                assert max_difference(next_state[n], batched[2][n][:, k : k + 1]) <= 1e-6
            if weights is not None:
                assert max_difference(weights, batched[1][:, k : k + 1]) <= 1e-6


def test_every_parameter_learns(model):
    """A training state contains the optimizer's moments of every parameter, so each needs a gradient."""
    model.train()
    source, lengths = padded(SOURCES)
    model.logits(model(source, lengths, torch.tensor(TARGETS))).logsumexp(-1).sum().backward()
    for n, parameter in model.named_parameters():
        assert parameter.grad is not None, n
        assert parameter.grad.isfinite().all(), n
        assert parameter.grad.any(), n


def test_tied_output_is_the_embedding():
    tied = Seq2Seq(Seq2SeqConfig(tied_output=True, **SMALL), VOCAB, VOCAB)
    assert tied.output.weight is tied.embedding.weight
    assert tied.combine.out_features == 6
    assert Seq2Seq(Seq2SeqConfig(**SMALL), VOCAB, VOCAB).combine.out_features == 8


def test_dropout_only_in_training():
    torch.manual_seed(3)
    model = Seq2Seq(Seq2SeqConfig(dropout=0.5, decoder_layers=2, encoder_layers=2, **SMALL), VOCAB, VOCAB)
    arguments = (*padded(SOURCES), torch.tensor(TARGETS))
    with torch.no_grad():
        assert max_difference(model(*arguments), model(*arguments)) > 1e-3
        model.eval()
        assert max_difference(model(*arguments), model(*arguments)) == 0.0


ONE_CHANGE = [
    {},
    *({"attention": attention} for attention in ATTENTIONS if attention != "additive"),
    {"attend": "after"},
    {"attend": "after", "input_feeding": True},
    {"input_feeding": True},
    {"cell": "lstm"},
    {"cell": "lstm", "encoder_layers": 2, "decoder_layers": 2},
    {"bridge": "none"},
    {"tied_output": True},
]


@pytest.mark.parametrize("changes", ONE_CHANGE, ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()) or "default")
def test_model_learns_three_sentences(changes):
    """The loss falls from log(vocabulary) to less than a tenth of it."""
    torch.manual_seed(3)
    sizes = {"embedding": 16, "encoder_hidden": 12, "decoder_hidden": 24, "attention_size": 12}
    model = Seq2Seq(Seq2SeqConfig(**sizes, **changes), VOCAB, VOCAB)
    source, lengths = padded(SOURCES)
    target = torch.tensor(TARGETS)
    expected = torch.tensor([[5, 9, 4, EOS], [7, EOS, PAD, PAD], [6, 6, EOS, PAD]])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(80):
        logits = model.logits(model(source, lengths, target))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), expected.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.5
    assert losses[-1] < 0.15


def test_incompatible_encoder_cell_fails():
    with pytest.raises(ConfigError, match="starts from the encoder's cell state, which encoder_cell = 'gru'"):
        Seq2Seq(Seq2SeqConfig(cell="lstm", encoder_cell="gru", **SMALL), VOCAB, VOCAB)
    Seq2Seq(Seq2SeqConfig(cell="lstm", encoder_cell="gru", bridge="none", **SMALL), VOCAB, VOCAB)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"attention": "none", "normalizer": "sparsemax"}, "needs an attention"),
        ({"attention": "none", "focus": "hard"}, "no energy for each source position, which hard needs"),
        ({"attention": "pooling", "coverage": True}, "no energy for each source position, which coverage needs"),
        ({"attention": "multi-head", "focus": "local-p", "window": 2}, "which local-p needs"),
    ],
)
def test_unsupported_combination_fails(options, error):
    with pytest.raises(ConfigError, match=error):
        Seq2Seq(Seq2SeqConfig(**options, **SMALL), VOCAB, VOCAB)
