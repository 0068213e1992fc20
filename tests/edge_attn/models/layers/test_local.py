"""Local attention: the position and the edges of its window, gradients and export."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edge_attn.errors import ConfigError
from edge_attn.export.trace import trace
from edge_attn.models.interface import Memory
from edge_attn.models.layers.attention import Attention
from edge_attn.models.layers.local import Local, Monotonic, Predictive
from edge_attn.models.layers.normalizers import NORMALIZERS
from edge_attn.ops import local as local_op
from edge_attn.registry import ATTENTIONS, resolve
from edge_attn.spec import GraphSpec, TensorSpec

torch.set_num_threads(1)

HIDDEN, ATTN, SRC = 6, 5, 9
SCORES = {"dot": HIDDEN, "general": 7, "concat": 7, "scaled": HIDDEN}
"""Value size of each score."""
KINDS = ("local-m", "local-p")
MASK = torch.arange(SRC) < torch.tensor([[SRC], [4], [0]])
ORACLES = {"softmax": local_op.OP.oracle, "sparsemax": local_op.SPARSE_OP.oracle}


def random_tensor(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def local(kind: str, score: str, window: int = 2, normalizer: str = "softmax") -> Local:
    torch.manual_seed(0)
    inner: Attention = resolve("attention", ATTENTIONS, score)(HIDDEN, SCORES[score], ATTN)
    module = {
        "local-m": lambda: Monotonic(inner, window, normalizer),
        "local-p": lambda: Predictive(inner, window, HIDDEN, ATTN, normalizer),
    }[kind]()
    return module.double()


def sentence(module: Local, score: str, tgt: int = 3) -> tuple[Tensor, Memory]:
    values = random_tensor(3, SRC, SCORES[score], seed=2)
    return random_tensor(3, tgt, HIDDEN, seed=1), module.prepare(values, MASK, values[:, 0])


def positions(module: Local, query: Tensor) -> np.ndarray:
    """Return p_t of the paper's equation."""
    if isinstance(module, Monotonic):
        return np.broadcast_to(np.arange(query.shape[1])[None, :, None], (*query.shape[:2], 1)).astype(np.float64)
    assert isinstance(module, Predictive)
    w, v = module.inner.weight.detach().numpy(), module.v.detach().numpy()
    share = 1 / (1 + np.exp(-(np.tanh(query.numpy() @ w.T) @ v)))
    return (MASK.sum(1).numpy()[:, None] * share)[:, :, None]


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("window", [1, 2, 50])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_layer_follows_its_equation(kind: str, score: str, window: int, normalizer: str) -> None:
    module = local(kind, score, window, normalizer)
    query, memory = sentence(module, score)
    context, weights = module(query, memory)
    expected_context, expected_weights = ORACLES[normalizer](
        module.score.energy(query, memory).numpy(), positions(module, query), memory["values"].numpy(),
        MASK[:, None, :].numpy(), window=window, gaussian=int(kind == "local-p"),
    )  # fmt: skip
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(context, expected_context, rtol=1e-12, atol=1e-12)
    assert (context[2] == 0).all()


# ---- the window


@pytest.mark.parametrize(
    ("position", "window", "inside"),
    [
        (4.0, 1, [3, 4, 5]),
        (4.5, 1, [4, 5]),
        (4.0, 3, [1, 2, 3, 4, 5, 6, 7]),
        (0.0, 2, [0, 1, 2]),
        (8.0, 2, [6, 7, 8]),
        (9.0, 2, [7, 8]),
        (-1.0, 1, [0]),
        (11.0, 2, []),
        (-7.0, 2, []),
        (4.0, 99, list(range(9))),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_window_includes_both_ends_within_the_sentence(
    position: float, window: int, inside: list[int], dtype: torch.dtype
) -> None:
    module = local("local-m", "dot", window).to(dtype)
    query, values = torch.zeros(1, 1, HIDDEN, dtype=dtype), random_tensor(1, SRC, HIDDEN, seed=2).to(dtype)
    memory = module.prepare(values, MASK[:1], values[:, 0])
    context, weights = module.attend_at(torch.full((1, 1, 1), position, dtype=dtype), query, memory)
    expected = torch.zeros(SRC, dtype=dtype)
    expected[inside] = 1 / max(1, len(inside))
    torch.testing.assert_close(weights[0, 0], expected)
    torch.testing.assert_close(context[0, 0], expected @ values[0])
    assert ((weights[0, 0] == 0) == (expected == 0)).all()


@torch.no_grad()
def test_gaussian_has_sigma_of_half_the_window() -> None:
    module = local("local-p", "dot", window=4)
    values = random_tensor(1, SRC, HIDDEN, seed=2)
    memory = module.prepare(values, MASK[:1], values[:, 0])
    _, weights = module.attend_at(torch.full((1, 1, 1), 4.0).double(), torch.zeros(1, 1, HIDDEN).double(), memory)
    distance = np.abs(np.arange(SRC) - 4)
    np.testing.assert_allclose(weights[0, 0], np.exp(-(distance**2) / (2 * 2.0**2)) / SRC, rtol=1e-12)
    assert weights.sum() < 0.6


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@torch.no_grad()
def test_local_m_after_the_sentence_has_zero_weights(normalizer: str) -> None:
    """The window of the seventh target position, with D = 2, is outside a sentence of four tokens."""
    module = local("local-m", "general", window=2, normalizer=normalizer)
    query, memory = sentence(module, "general", tgt=8)
    context, weights = module(query, memory)
    assert ((weights[1] > 0).any(-1)).tolist() == [True] * 6 + [False] * 2
    assert (context[1, 6:] == 0).all()
    assert (weights[1, :, 4:] == 0).all()


@torch.no_grad()
def test_local_p_is_within_the_real_tokens() -> None:
    module = local("local-p", "general")
    assert isinstance(module, Predictive)
    query, memory = sentence(module, "general", tgt=50)
    p = module.position(100 * query, memory)
    assert ((p >= 0) & (p <= MASK.sum(1)[:, None, None])).all()
    assert p[0].max() > 4
    assert (p[2] == 0).all()


# ---- steps


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_single_steps_equal_all_steps(kind: str, normalizer: str) -> None:
    module = local(kind, "concat", normalizer=normalizer)
    query, memory = sentence(module, "concat", tgt=4)
    context, weights = module(query, memory)
    state = module.start(memory)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == (
        {"position": (3, 1, 1)} if kind == "local-m" else {}
    )
    for t in range(4):
        before = {name: tensor.clone() for name, tensor in state.items()}
        one, one_weights, following = module.step(query[:, t : t + 1], memory, state)
        torch.testing.assert_close((one, one_weights), (context[:, t : t + 1], weights[:, t : t + 1]))
        assert all(torch.equal(before[name], state[name]) for name in before)  # the state is not changed in place
        state = following


@torch.no_grad()
def test_beams_of_local_m_have_the_same_position() -> None:
    module = local("local-m", "dot")
    query, memory = sentence(module, "dot")
    position = torch.full((3, 3, 1), 2.0).double()
    context, weights, state = module.step(query, memory, {"position": position})
    for beam in range(3):
        alone = module.step(query[:, beam : beam + 1], memory, {"position": position[:, :1]})
        torch.testing.assert_close((context[:, beam : beam + 1], weights[:, beam : beam + 1]), alone[:2])
    assert torch.equal(state["position"], position + 1)


# ---- learning


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_correct_and_reach_every_parameter(kind: str, score: str, normalizer: str) -> None:
    module = local(kind, score, window=3, normalizer=normalizer)
    query, memory = sentence(module, score)
    values = memory["values"]
    if normalizer == "sparsemax":
        query = 0.1 * query  # a support of one key has gradient zero

    def attend(query: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        context, weights = module(query, module.prepare(values, MASK, values[:, 0]))
        return context, weights

    assert torch.autograd.gradcheck(attend, (query.requires_grad_(), values.requires_grad_()))
    context, weights = attend(query, values)
    (context.square().sum() + weights.square().sum()).backward()
    for parameter, value in module.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert (value.grad != 0).any(), parameter


# ---- export


class Step(nn.Module):
    def __init__(self, module: Local) -> None:
        super().__init__()
        self.module = module

    def forward(self, query: Tensor, values: Tensor, mask: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        context, weights, state = self.module.step(
            query, self.module.prepare(values, mask, values[:, 0]), {"position": position}
        )
        assert weights is not None
        return context, weights, 2.0 * state["position"]


@pytest.mark.parametrize(
    ("score", "normalizer"),
    [("dot", "softmax"), ("general", "softmax"), ("concat", "softmax"), ("general", "sparsemax")],
)
@pytest.mark.parametrize("kind", KINDS)
def test_exported_step_is_one_node_and_equals_torch(kind: str, score: str, normalizer: str) -> None:
    module = Step(local(kind, score, window=2, normalizer=normalizer).float())
    size = SCORES[score]
    spec = GraphSpec(
        "step.onnx",
        (
            TensorSpec("query", "float32", ("batch", "tgt", HIDDEN)),
            TensorSpec("values", "float32", ("batch", "src", size)),
            TensorSpec("mask", "bool", ("batch", "src")),
            TensorSpec("position", "float32", ("batch", "tgt", 1)),
        ),
        (
            TensorSpec("context", "float32", ("batch", "tgt", size)),
            TensorSpec("weights", "float32", ("batch", "tgt", "src")),
            TensorSpec("twice", "float32", ("batch", "tgt", 1)),
        ),
    )

    def make_inputs(batch: int, tgt: int, src: int) -> list[Tensor]:
        mask = torch.arange(src) < torch.arange(src, src - batch, -1)[:, None]
        position = torch.randint(0, src + 4, (batch, tgt, 1), generator=torch.Generator().manual_seed(src))
        floats = random_tensor(batch, tgt, HIDDEN, seed=1), random_tensor(batch, src, size, seed=2)
        return [*(tensor.float() for tensor in floats), mask, position.float()]

    def forward(*tensors: Tensor) -> list[np.ndarray]:
        with torch.no_grad():
            return [tensor.numpy() for tensor in module(*tensors)]

    model = trace(module, spec, make_inputs(2, 3, 5))
    name = {"softmax": "LocalAttention", "sparsemax": "SparseLocalAttention"}[normalizer]
    assert [node.op_type for node in model.graph.node if node.domain == "edge_attn"] == [name]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for sizes in ((1, 1, 1), (2, 5, 3), (4, 2, 30)):
        tensors = make_inputs(*sizes)
        feed = {tensor.name: value.numpy() for tensor, value in zip(spec.inputs, tensors, strict=True)}
        for ours, theirs in zip(session.run(None, feed), forward(*tensors), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
            assert ((ours == 0) == (theirs == 0)).all()
    assert onnx.checker.check_model(model) is None


# ---- bad input


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [0, -1])
def test_window_below_one_is_refused(kind: str, window: int) -> None:
    with pytest.raises(ConfigError, match=f"^window must be at least 1, got {window}$"):
        local(kind, "dot", window)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_normalizer_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"^normalizer must be one of softmax, sparsemax, got 'entmax'$"):
        local(kind, "dot", 2, "entmax")
