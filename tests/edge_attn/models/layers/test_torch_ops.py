"""The torch implementation of each op: gradients, registration, export. Values: tests/edge_attn/ops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from op_cases import CASES, inputs
from op_implementations import REGISTERED
from torch import Tensor, nn

from edge_attn.errors import ExportError, InputError
from edge_attn.export import lower
from edge_attn.export.trace import trace
from edge_attn.models.layers import torch_ops
from edge_attn.models.layers.recurrent import GATES, RecurrentLayer
from edge_attn.ops import DOMAIN
from edge_attn.registry import ATTENTIONS, resolve
from edge_attn.spec import GraphSpec, TensorSpec

torch.set_num_threads(1)

MASKS = {
    "all": [[1, 1, 1], [1, 1, 1]],
    "ragged": [[1, 1, 1], [1, 1, 0]],
    "one key": [[0, 1, 0], [0, 0, 1]],
    "some rows": [[0, 1, 1], [0, 0, 0]],
    "no row": [[0, 0, 0], [0, 0, 0]],
}


def random_tensor(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def attention_inputs(kind: str, v: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return query, keys, values, mask and, for the additive op, v; all but the mask record gradients."""
    floats = [random_tensor(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(2, 2, 4), (2, 3, 4), (2, 3, 5)])]
    inputs = [*floats, torch.tensor(MASKS[kind], dtype=torch.bool)]
    if v:
        inputs.append(random_tensor(4, seed=3, dtype=dtype))
    return [tensor.requires_grad_(tensor.is_floating_point()) for tensor in inputs]


def additive(*inputs: Tensor) -> Any:
    return torch_ops.additive_attention(*inputs)


def dot(*inputs: Tensor) -> Any:
    return torch_ops.dot_attention(*inputs, 0.5)


ATTENTION_OPS = [pytest.param(additive, True, id="additive"), pytest.param(dot, False, id="dot")]

# ---- gradients of attention


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("op", "v"), ATTENTION_OPS)
def test_attention_gradient_is_correct(op: Callable[..., Any], v: bool, kind: str) -> None:
    assert torch.autograd.gradcheck(op, attention_inputs(kind, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("op", "v"), ATTENTION_OPS)
def test_row_without_key_has_zero_gradient(op: Callable[..., Any], v: bool, dtype: torch.dtype) -> None:
    inputs = attention_inputs("some rows", v, dtype)
    with torch.autograd.set_detect_anomaly(True):  # raises for every NaN, even one that is masked later
        context, weights = op(*inputs)
        assert (context[1] == 0).all()
        assert (weights[1] == 0).all()
        (context.square().sum() + weights.square().sum()).backward()
    for tensor in inputs[:3]:
        assert tensor.grad is not None
        assert (tensor.grad[1] == 0).all()
        assert tensor.grad[0].isfinite().all()
        assert (tensor.grad[0] != 0).any()


@pytest.mark.parametrize(("op", "v"), ATTENTION_OPS)
def test_masked_key_has_zero_gradient(op: Callable[..., Any], v: bool) -> None:
    inputs = attention_inputs("ragged", v)
    context, weights = op(*inputs)
    (context.square().sum() + weights.square().sum()).backward()
    for tensor in inputs[1:3]:
        assert tensor.grad is not None
        assert (tensor.grad[1, 2] == 0).all()
        assert (tensor.grad[1, 1] != 0).any()


def test_masked_softmax_is_softmax_over_unmasked_keys() -> None:
    energy = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    weights = torch_ops.masked_softmax(energy, mask)
    torch.testing.assert_close(weights[0], energy[0].softmax(0))
    torch.testing.assert_close(weights[1, 1:], energy[1, 1:].softmax(0))
    assert weights[1, 0] == 0
    assert (weights[2] == 0).all()


# ---- gradients of the recurrent ops, compared with torch's modules

TORCH_MODULES = {"gru": nn.GRU, "lstm": nn.LSTM}
FROM_TORCH = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
"""Index of each of our gates (z r h; i o f c) in torch's order (r z n; i f g o)."""
SIZE, HIDDEN = 5, 4


def in_our_order(cell: str, parameters: dict[str, Tensor]) -> list[Tensor]:
    """Return w, r and b from a torch module's parameters, or from their gradients."""

    def reordered(name: str) -> Tensor:
        gates = parameters[name].chunk(GATES[cell])
        return torch.cat([gates[i] for i in FROM_TORCH[cell]])

    suffixes = ["", "_reverse"] if "weight_ih_l0_reverse" in parameters else [""]
    w, r, bias_w, bias_r = (
        torch.stack([reordered(f"{part}_l0{suffix}") for suffix in suffixes])
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    return [w, r, torch.cat([bias_w, bias_r], 1)]


def torch_row_by_row(module: nn.Module, x: Tensor, lengths: list[int]) -> list[Tensor]:
    """Return output and final states of each row alone, without packing or padding."""
    outputs, finals = [], []
    for row, length in zip(x, lengths, strict=True):
        output, states = module(row[None, :length])
        states = states if isinstance(states, tuple) else (states,)
        outputs.append(nn.functional.pad(output[0], (0, 0, 0, x.shape[1] - length)))
        finals.append([state.flatten() for state in states])
    return [torch.stack(outputs), *(torch.stack(state) for state in zip(*finals, strict=True))]


def loss(outputs: list[Tensor]) -> Tensor:
    """Return a sum in which each output element has its own weight, independent of later rows."""
    return torch.stack(
        [(o.flatten() * torch.arange(o.numel(), dtype=o.dtype).add(i).sin()).sum() for i, o in enumerate(outputs)]
    ).sum()


def torch_module(cell: str, bidirectional: bool) -> nn.Module:
    torch.manual_seed(0)
    return TORCH_MODULES[cell](SIZE, HIDDEN, batch_first=True, bidirectional=bidirectional).double()


def our_gradients(cell: str, module: nn.Module, x: Tensor, lengths: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs, and the gradients of x, w, r and b."""
    weights = in_our_order(cell, {name: value.detach() for name, value in module.named_parameters()})
    x, *weights = (tensor.clone().requires_grad_() for tensor in (x, *weights))
    outputs = list({"gru": torch_ops.gru, "lstm": torch_ops.lstm}[cell](x, torch.tensor(lengths), *weights))
    return outputs, list(torch.autograd.grad(loss(outputs), [x, *weights]))


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("cell", GATES)
def test_values_and_gradients_equal_torch(cell: str, bidirectional: bool) -> None:
    module, lengths = torch_module(cell, bidirectional), [3, 7, 1]
    x = random_tensor(3, 7, SIZE, seed=1)
    theirs_x = x.clone().requires_grad_()
    theirs = torch_row_by_row(module, theirs_x, lengths)
    loss(theirs).backward()
    assert theirs_x.grad is not None
    gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}

    outputs, ours = our_gradients(cell, module, x, lengths)
    torch.testing.assert_close(outputs, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, [theirs_x.grad, *in_our_order(cell, gradients)], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("cell", GATES)
def test_row_of_length_zero_has_zero_gradient(cell: str) -> None:
    module = torch_module(cell, bidirectional=True)
    x = random_tensor(3, 4, SIZE, seed=2)
    outputs, (grad_x, *grads) = our_gradients(cell, module, x, [4, 2, 0])
    without, (grad_x_without, *grads_without) = our_gradients(cell, module, x[:2], [4, 2])
    assert all((output[2] == 0).all() for output in outputs)
    assert (grad_x[2] == 0).all()
    torch.testing.assert_close([output[:2] for output in outputs], without, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close([grad_x[:2], *grads], [grad_x_without, *grads_without], rtol=1e-12, atol=1e-12)

    outputs, gradients = our_gradients(cell, module, x, [0, 0, 0])
    assert all((output == 0).all() for output in outputs)
    assert all((gradient == 0).all() for gradient in gradients)


# ---- registration


def call(name: str, requires_grad: bool) -> tuple[Any, tuple[Any, ...]]:
    """Return the op of the case and its arguments; one row has no key."""
    tensors = [torch.from_numpy(array) for array in inputs(name, "float64", "some rows", 3, 2).values()]
    tensors = [t.clone().requires_grad_(requires_grad and t.is_floating_point()) for t in tensors]
    return REGISTERED[CASES[name].op], (*tensors, *CASES[name].attributes.values())


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_torch_accepts_the_registration(name: str, requires_grad: bool) -> None:
    """Run torch's check of custom ops: schema, autograd, and equal shapes of the fake and the real op."""
    op, args = call(name, requires_grad)
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.parametrize("name", CASES)
def test_values_are_equal_with_and_without_gradients(name: str) -> None:
    op, recorded = call(name, True)
    _, plain = call(name, False)
    with_gradient = op(*recorded)
    assert all(output.grad_fn is not None for output in with_gradient)
    with torch.no_grad():
        without = op(*recorded)
    with torch.inference_mode():
        inference = op(*plain)
    for first, *rest in zip(with_gradient, without, inference, op(*plain), strict=True):
        assert all(not other.requires_grad and torch.equal(first, other) for other in rest)


# ---- export of a user's module


class Reader(nn.Module):
    """A user's module: an encoder and an attention over its outputs."""

    def __init__(self, cell: str, attention: str) -> None:
        super().__init__()
        self.encoder = RecurrentLayer(cell, SIZE, HIDDEN)
        self.attention = resolve("attention", ATTENTIONS, attention)(2 * HIDDEN, 2 * HIDDEN, 6)

    def forward(self, x: Tensor, lengths: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, (summary, *_) = self.encoder(x, lengths)
        mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        context, weights = self.attention(query, self.attention.prepare(values, mask, summary))
        return context, weights, summary


READER = GraphSpec(
    "reader.onnx",
    (
        TensorSpec("x", "float32", ("batch", "src", SIZE)),
        TensorSpec("lengths", "int64", ("batch",)),
        TensorSpec("query", "float32", ("batch", "tgt", 2 * HIDDEN)),
    ),
    (
        TensorSpec("context", "float32", ("batch", "tgt", 2 * HIDDEN)),
        TensorSpec("weights", "float32", ("batch", "tgt", "src")),
        TensorSpec("summary", "float32", ("batch", 2 * HIDDEN)),
    ),
)


def reader_inputs(batch: int, src: int, tgt: int) -> list[Tensor]:
    """Return inputs whose first row is full and whose second row, if any, is empty."""
    lengths = torch.tensor([src, 0, *range(1, src + 1), *[1] * batch][:batch])
    x = random_tensor(batch, src, SIZE, seed=src, dtype=torch.float32)
    return [x, lengths, random_tensor(batch, tgt, 2 * HIDDEN, seed=tgt, dtype=torch.float32)]


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, inputs)
    return outputs


def assert_one_node_each(model: onnx.ModelProto, ops: dict[str, int]) -> None:
    """Check that the model calls our ops this often, by the call rules, with their bodies and not decomposed."""
    ours = [node for node in model.graph.node if node.domain == DOMAIN]
    assert Counter(node.op_type for node in ours) == ops
    assert {function.name for function in model.functions} == set(ops)
    assert not {"GRU", "LSTM", "Softmax", "Tanh", "Sigmoid"} & {node.op_type for node in model.graph.node}
    for node in ours:
        declared = lower.op(node.op_type)
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert attributes.pop("plugin_namespace") == b"edge_attn"
        assert attributes.pop("plugin_version") == b"1"
        assert set(attributes) == set(declared.attributes)
        assert len(node.input) == len(declared.inputs)
        assert len(node.output) == len(declared.outputs)
        assert all([*node.input, *node.output])


@pytest.mark.parametrize(
    ("cell", "attention", "ops"),
    [
        ("gru", "additive", {"Gru": 1, "AdditiveAttention": 1}),
        ("lstm", "dot", {"Lstm": 1, "DotAttention": 1}),
        ("gru", "general", {"Gru": 1, "DotAttention": 1}),
        ("lstm", "scaled", {"Lstm": 1, "DotAttention": 1}),
    ],
)
def test_export_has_one_node_for_each_op_and_equals_torch(cell: str, attention: str, ops: dict[str, int]) -> None:
    torch.manual_seed(0)
    module = Reader(cell, attention)
    model = trace(module, READER, reader_inputs(batch=2, src=5, tgt=3))
    onnx.checker.check_model(model, full_check=True)
    assert_one_node_each(model, ops)

    names = [tensor.name for tensor in READER.inputs]
    for batch in (1, 2, 5):
        for src in (1, 4, 50):
            inputs = reader_inputs(batch, src, tgt=1 + batch % 2)
            with torch.no_grad():
                expected = [tensor.numpy() for tensor in module(*inputs)]
            actual = run(model, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
            for ours, theirs in zip(actual, expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
                assert (ours[theirs == 0] == 0).all()
            if batch > 1:
                assert all((output[1] == 0).all() for output in actual)


class OneWay(nn.Module):
    """A user's stack of two forward GRUs that returns the last state of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ParameterList(in_our_order("gru", dict(nn.GRU(SIZE, HIDDEN).named_parameters())))
        self.second = nn.ParameterList(in_our_order("gru", dict(nn.GRU(HIDDEN, HIDDEN).named_parameters())))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        output, _ = torch_ops.gru(x, lengths, *self.first)
        _, last = torch_ops.gru(output, lengths, *self.second)
        result: Tensor = last
        return result


ONE_WAY = GraphSpec("one_way.onnx", READER.inputs[:2], (TensorSpec("last", "float32", ("batch", HIDDEN)),))


def test_stack_is_one_node_for_each_layer() -> None:
    torch.manual_seed(0)
    module = OneWay()
    model = trace(module, ONE_WAY, reader_inputs(batch=2, src=5, tgt=1)[:2])
    assert_one_node_each(model, {"Gru": 2})
    for batch, src in ((1, 1), (3, 7)):
        x, lengths, _ = reader_inputs(batch, src, tgt=1)
        with torch.no_grad():
            expected = module(x, lengths).numpy()
        (actual,) = run(model, {"x": x.numpy(), "lengths": lengths.numpy()})
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_unknown_op_is_refused() -> None:
    node = onnx.helper.make_node("Telepathy", ["x"], ["y"], domain=DOMAIN)
    with pytest.raises(ExportError, match="edge_attn::Telepathy"):
        lower.attach_functions(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])))


# ---- wrong masks

MASKED = [name for name, case in CASES.items() if "mask" in case.shapes]
WRONG = {
    "numbers": lambda mask: mask.float(),
    "an axis too few": lambda mask: mask[0],
    "an axis too many": lambda mask: mask[:, None, None, :] if mask.ndim == 2 else mask[:, None],
    "a longer sentence": lambda mask: torch.cat([mask, mask], -1),
    "another batch": lambda mask: torch.cat([mask, mask]),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", MASKED)
def test_wrong_mask_is_refused(name: str, wrong: str) -> None:
    tensors = {key: torch.from_numpy(array) for key, array in inputs(name, "float32", "ragged", 3, 2).items()}
    function, attributes = torch_ops.FUNCTIONS[CASES[name].op], CASES[name].attributes.values()
    function(*tensors.values(), *attributes)
    tensors["mask"] = WRONG[wrong](tensors["mask"])
    with pytest.raises(InputError, match=f"{CASES[name].op}: the mask must .*got") as raised:
        function(*tensors.values(), *attributes)
    assert "\n" not in str(raised.value)
