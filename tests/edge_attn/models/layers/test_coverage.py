"""Coverage: its state is the sum of the weights, and it is a feature of every score's energy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.errors import ConfigError
from edge_attn.export.pipeline import graph_model
from edge_attn.models.graphs import encoder_decoder_graphs
from edge_attn.models.interface import Memory, State
from edge_attn.models.layers.attention import Additive
from edge_attn.models.layers.coverage import Coverage
from edge_attn.models.layers.normalizers import NORMALIZERS, context_and_weights
from edge_attn.models.seq2seq import Seq2Seq, make_attention
from edge_attn.ops import masked_softmax
from edge_attn.parity import golden, recorder
from edge_attn.reference import ModelReferences
from edge_attn.registry import ATTENTIONS, resolve

torch.set_num_threads(1)

SIZE, ATTN, SRC, TGT = 6, 5, 4, 2
WITHOUT = {"none", "pooling", "multi-head"}
"""Kinds without an energy for each source position."""
SCORES = [name for name in ATTENTIONS if name not in WITHOUT]
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
STEPS = 3


def config(name: str, **options: Any) -> Seq2SeqConfig:
    sizes = {"attention_size": ATTN, "encoder_hidden": SIZE // 2, "decoder_hidden": SIZE, "embedding": 4}
    return Seq2SeqConfig(**{**sizes, "attention": name, "coverage": True, **options})


def coverage(name: str, weight: float = -0.7, **options: Any) -> Coverage:
    """Return a coverage layer with the weight w_c."""
    torch.manual_seed(0)
    module = make_attention(config(name, **options), SIZE, SIZE)
    assert isinstance(module, Coverage)
    torch.nn.init.constant_(module.w, weight)
    return module.double()


def sentence() -> tuple[list[Tensor], Tensor]:
    """Return the queries of each step, and the values."""
    torch.manual_seed(1)
    return [torch.randn(3, TGT, SIZE).double() for _ in range(STEPS)], torch.randn(3, SRC, SIZE).double()


def steps(module: Coverage, queries: list[Tensor], memory: Memory) -> tuple[list[Tensor], list[Tensor], State]:
    """Return contexts and weights of each step, and the last state; every query has its own coverage."""
    state = {name: tensor.expand(-1, TGT, -1) for name, tensor in module.start(memory).items()}
    contexts, weights = [], []
    for query in queries:
        context, weight, state = module.step(query, memory, state)
        assert weight is not None
        contexts.append(context)
        weights.append(weight)
    return contexts, weights, state


@pytest.mark.parametrize("name", SCORES)
@torch.no_grad()
def test_first_step_equals_the_score(name: str) -> None:
    module, (queries, values) = coverage(name), sentence()
    memory = module.prepare(values, MASK, values[:, 0])
    torch.testing.assert_close(module(queries[0], memory), module.score(queries[0], memory))


@pytest.mark.parametrize("name", SCORES)
@torch.no_grad()
def test_initial_weight_of_zero_changes_nothing(name: str) -> None:
    untrained = make_attention(config(name), SIZE, SIZE)
    assert (untrained.w == 0).all()
    module, (queries, values) = coverage(name, weight=0.0), sentence()
    memory = module.prepare(values, MASK, values[:, 0])
    for query, context in zip(queries, steps(module, queries, memory)[0], strict=True):
        torch.testing.assert_close(context, module.score(query, memory)[0])


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("name", SCORES)
@torch.no_grad()
def test_state_is_the_sum_of_the_weights(name: str, normalizer: str) -> None:
    module, (queries, values) = coverage(name, normalizer=normalizer), sentence()
    memory = module.prepare(values, MASK, values[:, 0])
    assert {key: tuple(value.shape) for key, value in module.start(memory).items()} == {"coverage": (3, 1, SRC)}
    _, weights, state = steps(module, queries, memory)
    torch.testing.assert_close(state["coverage"], torch.stack(weights).sum(0))
    assert (state["coverage"][~MASK[:, None].expand(-1, TGT, -1)] == 0).all()
    torch.testing.assert_close(state["coverage"][:2].sum(-1), torch.full((2, TGT), float(STEPS)).double())


def equation(module: Coverage, query: np.ndarray, values: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Return the weights of See et al. 2017, equation 11, from the parameters of the additive score."""
    p = {name: value.detach().numpy() for name, value in module.named_parameters()}
    keys = values @ p["score.keys.weight"].T + p["score.keys.bias"]
    inner = (query @ p["score.query.weight"].T)[:, :, None] + keys[:, None] + covered[..., None] * p["w"]
    return masked_softmax(np.tanh(inner) @ p["score.v"], MASK[:, None].numpy())


@torch.no_grad()
def test_additive_score_adds_the_feature_inside_its_tanh() -> None:
    module, (queries, values) = coverage("additive"), sentence()
    torch.nn.init.uniform_(module.w, -2, 2)
    _, weights, _ = steps(module, queries, module.prepare(values, MASK, values[:, 0]))
    covered = np.zeros((3, TGT, SRC))
    for query, ours in zip(queries, weights, strict=True):
        expected = equation(module, query.numpy(), values.numpy(), covered)
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)
        covered = covered + expected


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("name", [name for name in SCORES if name not in ("additive", "concat")])
@torch.no_grad()
def test_other_scores_add_the_feature_to_the_energy(name: str, normalizer: str) -> None:
    module, (queries, values) = coverage(name, normalizer=normalizer), sentence()
    memory = module.prepare(values, MASK, values[:, 0])
    covered = torch.zeros(3, TGT, SRC).double()
    contexts, weights, _ = steps(module, queries, memory)
    for query, context, weight in zip(queries, contexts, weights, strict=True):
        energy = module.score.energy(query, memory) - 0.7 * covered
        torch.testing.assert_close((context, weight), context_and_weights(energy, values, memory["mask"], normalizer))
        covered += weight


@pytest.mark.parametrize("name", SCORES)
@torch.no_grad()
def test_queries_have_independent_coverage(name: str) -> None:
    """Beams are queries: each has its own state."""
    module, (queries, values) = coverage(name), sentence()
    memory = module.prepare(values, MASK, values[:, 0])
    together, _, _ = steps(module, queries, memory)
    for t in range(TGT):
        state = module.start(memory)
        for query, all_contexts in zip(queries, together, strict=True):
            context, _, state = module.step(query[:, t : t + 1], memory, state)
            torch.testing.assert_close(context, all_contexts[:, t : t + 1])


@pytest.mark.parametrize("name", SCORES)
def test_gradients_are_correct_and_reach_every_parameter(name: str) -> None:
    module, (queries, values) = coverage(name), sentence()

    def last_context(values: Tensor) -> Tensor:
        return steps(module, queries, module.prepare(values, MASK, values[:, 0]))[0][-1]

    assert torch.autograd.gradcheck(last_context, (values.requires_grad_(),))
    last_context(values).square().sum().backward()
    for parameter, value in module.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert (value.grad != 0).any(), parameter


@pytest.mark.parametrize("name", SCORES)
@torch.no_grad()
def test_projected_values_give_projected_contexts(name: str) -> None:
    module, (queries, values) = coverage(name), sentence()
    memory, weight = module.prepare(values, MASK, values[:, 0]), torch.randn(2, SIZE).double()
    projected = module.project_values(memory, weight)
    assert projected is not None
    contexts, weights, _ = steps(module, queries, memory)
    torch.testing.assert_close(steps(module, queries, projected)[:2], ([c @ weight.T for c in contexts], weights))


@pytest.mark.parametrize("name", sorted(WITHOUT & ATTENTIONS.keys()))
def test_attention_without_energy_is_refused(name: str) -> None:
    assert not resolve("attention", ATTENTIONS, name).has_energy
    with pytest.raises(ConfigError, match=f"attention = '{name}' has no energy for each source position"):
        make_attention(config(name, heads=2, attention_size=4), SIZE, SIZE)


def test_weight_is_a_vector_for_additive_and_a_number_for_others() -> None:
    shapes = {name: tuple(coverage(name).w.shape) for name in SCORES}
    additive = [name for name in SCORES if resolve("attention", ATTENTIONS, name) is Additive]
    assert shapes == {name: (ATTN,) if name in additive else () for name in SCORES}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "when"), [("additive", "before"), ("location", "after"), ("keras-concat", "before")])
def test_coverage_and_input_feeding_are_exported_states(name: str, when: str) -> None:
    """`graph_model` compares each graph with torch at other sizes; the graph reorders the state by parents."""
    torch.manual_seed(0)
    model = Seq2Seq(config(name, input_feeding=True, attend=when, cell="lstm"), 12, 12)
    torch.nn.init.constant_(model.attention.get_parameter("w"), -2.0)
    modules = encoder_decoder_graphs(model, candidates=4)
    encoder, step = modules["encoder"].spec, modules["step"].spec
    initial = {t.name: t.shape for t in encoder.outputs if t.name.startswith("state.")}
    assert initial["state.attention.coverage"] == ("batch", 1, "src")
    assert initial["state.feed"] == ("batch", 1, SIZE)
    following = {t.name: t.shape for t in step.outputs if t.name.startswith("next_state.")}
    assert following["next_state.attention.coverage"] == ("batch", "beam", "src")
    for graph, module in modules.items():
        graph_model(graph, module, module.spec)


@pytest.mark.parametrize("name", ["additive", "location"])
def test_golden_coverage_is_independent_of_batch_and_padding(name: str) -> None:
    """The state has a column for each source token; columns of padding do not count."""
    torch.manual_seed(0)
    model = Seq2Seq(config(name, input_feeding=True), 12, 12)
    torch.nn.init.constant_(model.attention.get_parameter("w"), -2.0)
    sources, targets = [[4, 5, 6, 7, 8, 9, 3], [10, 3], [5, 5, 6, 3]], [[4, 5], [6, 7, 8], []]
    together = recorder.run_teacher_forced(ModelReferences(model).reference, sources, targets)
    alone = recorder.run_teacher_forced(ModelReferences(model).reference, sources, targets, batch=1)
    for one, other, source, target in zip(together, alone, sources, targets, strict=True):
        assert one.encoder["state.attention.coverage"].shape == (len(source), 1)
        assert one.states["next_state.attention.coverage"].shape == (len(target) + 1, golden.PROJECTIONS)
        assert (one.states["next_state.attention.coverage"] != 0).any()
        for ours, theirs in ((one.encoder, other.encoder), (one.states, other.states)):
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                np.testing.assert_allclose(value, theirs[key], rtol=1e-5, atol=1e-6)
