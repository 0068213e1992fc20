"""Tests of the graphs of every kind of model: names, shapes, reordering by parents, and candidates."""

from __future__ import annotations

import pytest
import torch

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.models.graphs import EncoderGraph, StepGraph, encoder_decoder_graphs
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.registry import ATTENTIONS

torch.set_num_threads(1)

VOCAB = 11
SMALL = {"embedding": 6, "encoder_hidden": 4, "decoder_hidden": 8, "attention_size": 6, "heads": 2}
WRAPPED = (
    {"focus": "local-m", "window": 2},
    {"focus": "local-p", "window": 2, "normalizer": "sparsemax"},
    {"focus": "hard"},
    {"normalizer": "sparsemax"},
    {"attention": "multi-head", "normalizer": "sparsemax"},
    {"attention": "pooling", "normalizer": "sparsemax"},
    {"coverage": True},
    {"attention": "general", "coverage": True},
    {"encoder_cell": "lstmn"},
    {"cell": "lstmn", "tape": 3, "decoder_layers": 2},
)
CONFIGS = [
    Seq2SeqConfig(
        **{**SMALL, "cell": cell, "attend": attend, "input_feeding": feeding, "decoder_layers": layers, **kind}
    )
    for kind in (*({"attention": attention} for attention in ATTENTIONS), *WRAPPED)
    for cell, attend, feeding, layers in (("gru", "before", False, 1), ("lstm", "after", True, 2))
    if "encoder_cell" not in kind or cell == "lstm"
]
SOURCE = torch.tensor([[5, 6, 7, 3], [8, 3, 0, 0], [4, 9, 3, 0]])
LENGTH = torch.tensor([4, 2, 3])


def name(config: Seq2SeqConfig) -> str:
    plain = Seq2SeqConfig(**SMALL)
    return "-".join(str(value) for key, value in vars(config).items() if value != getattr(plain, key))


@pytest.fixture(params=CONFIGS, ids=name)
def model(request) -> Seq2Seq:
    torch.manual_seed(3)
    return Seq2Seq(request.param, VOCAB, VOCAB + 1)


def named(graph, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return dict(zip((tensor.name for tensor in graph.spec.outputs), graph(*tensors), strict=True))


def test_graphs_describe_their_tensors(model):
    graphs = encoder_decoder_graphs(model, 4)
    encoder, step = graphs["encoder"].spec, graphs["step"].spec
    assert not model.training
    assert (encoder.file, step.file) == ("graphs/encoder.onnx", "graphs/step.onnx")
    assert [tensor.name for tensor in encoder.inputs] == ["source", "source_length"]
    encoded = {tensor.name: tensor for tensor in encoder.outputs}
    step_inputs = {tensor.name: tensor for tensor in step.inputs}
    assert step_inputs.keys() == {"tokens", "parents", *encoded}
    for tensor in step.inputs[2:]:
        start = encoded[tensor.name].shape
        if tensor.name.startswith("memory."):
            assert tensor.shape == start
            assert (start[1] == "src") is (tensor.name != "memory.summary")
        else:
            assert start[:2] == ("batch", 1)
            assert tensor.shape == ("batch", "previous_beam", *start[2:])
    next_states = [tensor.name for tensor in step.outputs if tensor.name.startswith("next_")]
    assert next_states == [f"next_{name}" for name in step.names("state.")]
    attends = model.config.attention != "none"
    assert ("alignment" in [tensor.name for tensor in step.outputs]) is attends


def test_outputs_have_the_described_shapes(model):
    encoder, step = encoder_decoder_graphs(model, 4).values()
    sizes = {"batch": 3, "src": 4, "beam": 5, "previous_beam": 2}
    encoded = named(encoder, SOURCE, LENGTH)
    beams = [value.repeat_interleave(2, 1) for name, value in encoded.items() if name.startswith("state.")]
    memory = [value for name, value in encoded.items() if name.startswith("memory.")]
    parents = torch.randint(0, 2, (3, 5), generator=torch.Generator().manual_seed(1))
    stepped = named(step, torch.full((3, 5), 4), parents, *memory, *beams)
    for graph, values in ((encoder, encoded), (step, stepped)):
        for tensor in graph.spec.outputs:
            value = values[tensor.name]
            assert tuple(value.shape) == tuple(sizes.get(axis, axis) for axis in tensor.shape)
            assert str(value.dtype) == f"torch.{tensor.dtype}"


def test_step_continues_from_the_parents(model):
    """Each hypothesis of a beam has the outputs that it has alone, from the state of its parent."""
    encoder, step = encoder_decoder_graphs(model, 4).values()
    encoded = named(encoder, SOURCE, LENGTH)
    memory = [value for name, value in encoded.items() if name.startswith("memory.")]
    states = [value for name, value in encoded.items() if name.startswith("state.")]
    random = torch.Generator().manual_seed(2)
    states = [(4 * torch.rand(3, 2, *value.shape[2:], generator=random)).to(value.dtype) for value in states]
    tokens = torch.tensor([[4, 5, 6], [7, 8, 9], [4, 4, 4]])
    parents = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0]])
    batched = named(step, tokens, parents, *memory, *states)
    for row in range(3):
        for beam in range(3):
            rows = slice(row, row + 1)
            state = [value[rows, parents[row, beam]][:, None] for value in states]
            alone = named(
                step,
                tokens[rows, beam : beam + 1],
                torch.zeros(1, 1, dtype=torch.long),
                *(m[rows] for m in memory),
                *state,
            )
            for output, value in alone.items():
                if output != "candidate_ids":
                    torch.testing.assert_close(batched[output][row, beam], value[0, 0], rtol=1e-5, atol=1e-6)


def test_step_matches_the_model(model):
    encoder, step = encoder_decoder_graphs(model, 4).values()
    with torch.no_grad():
        memory, state = model.encode(SOURCE, LENGTH)
        tokens = torch.tensor([[4], [5], [6]])
        features, weights, next_state = model.decode(model.embedding(tokens), memory, state)
        expected = torch.log_softmax(model.logits(features), -1)
    outputs = named(step, tokens, torch.zeros(3, 1, dtype=torch.long), *named(encoder, SOURCE, LENGTH).values())
    torch.testing.assert_close(outputs["log_probs"], expected)
    for key, value in next_state.items():
        torch.testing.assert_close(outputs[f"next_state.{key}"], value)
    if weights is not None:
        torch.testing.assert_close(outputs["alignment"], weights)


def test_candidates_are_the_best_in_order(model):
    encoder, step = encoder_decoder_graphs(model, 4).values()
    outputs = named(
        step,
        torch.tensor([[4], [5], [6]]),
        torch.zeros(3, 1, dtype=torch.long),
        *named(encoder, SOURCE, LENGTH).values(),
    )
    ordered = outputs["log_probs"].sort(-1, descending=True)
    assert torch.equal(outputs["candidates"], ordered.values[..., :4])
    assert torch.equal(outputs["log_probs"].gather(-1, outputs["candidate_ids"]), outputs["candidates"])


def step_graph(model: Seq2Seq, candidates: int) -> StepGraph:
    return StepGraph(model, EncoderGraph(model).spec, candidates)


def test_candidates_are_at_most_the_vocabulary():
    model = Seq2Seq(Seq2SeqConfig(**SMALL), VOCAB, VOCAB + 1).eval()
    assert step_graph(model, 500).spec.outputs[0].shape == ("batch", "beam", VOCAB + 1)
    assert step_graph(model, 2).spec.outputs[0].shape == ("batch", "beam", 2)


def test_specs_of_fp64_model_are_fp64():
    model = Seq2Seq(Seq2SeqConfig(**SMALL), VOCAB, VOCAB).double()
    kinds = {t.dtype for spec in (EncoderGraph(model).spec, step_graph(model, 3).spec) for t in spec.outputs}
    assert kinds == {"float64", "bool", "int64"}
