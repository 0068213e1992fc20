"""LSTMN: the layer equals its oracle in both directions, the cell equals the op step by step, and both export."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edge_attn import export_module
from edge_attn.models.layers.lstmn import LstmnCell, LstmnLayer, intra_attention
from edge_attn.models.layers.recurrent import LstmCell
from edge_attn.ops import intra_attention as op
from edge_attn.spec import GraphSpec

torch.set_num_threads(1)

SIZE, HIDDEN, TAPE = 5, 4, 8
LENGTHS = [3, 7, 0, 1]


def random_tensor(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomized(module: nn.Module) -> Any:
    """Return the module in float64 with random parameters."""
    for i, parameter in enumerate(module.double().parameters()):
        parameter.data += 0.3 * random_tensor(*parameter.shape, seed=i)
    return module


def layer() -> LstmnLayer:
    torch.manual_seed(0)
    module: LstmnLayer = randomized(LstmnLayer("lstmn", SIZE, HIDDEN))
    return module


def cell(tape: int = TAPE) -> LstmnCell:
    torch.manual_seed(0)
    module: LstmnCell = randomized(LstmnCell(SIZE, HIDDEN, tape))
    return module


def initial_state(module: LstmnCell, batch: int = 3, beam: int = 2) -> dict[str, Tensor]:
    return module.start(
        {name: random_tensor(batch, beam, HIDDEN, seed=i) for i, name in enumerate(module.final_states)}
    )


def run(module: LstmnCell, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return outputs (batch, beam, time, hidden) and the last state for x (batch, beam, time, size)."""
    outputs = []
    for x_t in x.unbind(2):
        output, state = module(nn.functional.linear(x_t, *module.projection()), state)
        outputs.append(output)
    return torch.stack(outputs, 2), state


# ---- the layer


@torch.no_grad()
def test_layer_equals_the_oracle_in_both_directions() -> None:
    module, x = layer(), random_tensor(4, 7, SIZE)
    output, finals = module(x, torch.tensor(LENGTHS))
    reversed_x = x.clone()
    for row, length in enumerate(LENGTHS):
        reversed_x[row, :length] = x[row, :length].flip(0)
    for d, x_d in enumerate((x, reversed_x)):
        weights = [parameter[d].numpy() for parameter in (module.w, module.r, module.b, module.u, module.v)]
        expected, *expected_finals, _ = map(torch.from_numpy, op.oracle(x_d.numpy(), np.array(LENGTHS), *weights))
        part = slice(d * HIDDEN, (d + 1) * HIDDEN)
        for row, length in enumerate(LENGTHS):
            actual = output[row, :length, part]
            torch.testing.assert_close(actual.flip(0) if d else actual, expected[row, :length], rtol=1e-12, atol=1e-12)
            assert (output[row, length:] == 0).all()
        torch.testing.assert_close([final[:, part] for final in finals], expected_finals, rtol=1e-12, atol=1e-12)


def test_gradient_is_correct() -> None:
    module = layer()
    inputs = [random_tensor(4, 3, SIZE), *(p[0].detach() for p in (module.w, module.r, module.b, module.u, module.v))]
    lengths = torch.tensor([3, 2, 0, 1])

    def call(x: Tensor, *weights: Tensor) -> Any:
        return intra_attention(x, lengths, *weights)

    assert torch.autograd.gradcheck(call, [tensor.requires_grad_() for tensor in inputs])


def test_padding_and_empty_rows_have_no_gradient() -> None:
    module, lengths = layer(), torch.tensor(LENGTHS)
    x = random_tensor(4, 7, SIZE).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # raises for every NaN, even one that is masked later
        output, finals = module(x, lengths)
        (output.square().sum() + sum(final.square().sum() for final in finals)).backward()
    padding = torch.arange(7) >= lengths[:, None]
    assert x.grad is not None
    assert (x.grad[padding] == 0).all()
    assert (x.grad[~padding] != 0).any(-1).all()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).flatten(1).any(1).all(), name


def test_initial_weights_are_within_glorots_bound() -> None:
    torch.manual_seed(0)
    module = LstmnLayer("lstmn", 30, 20)
    for weight, size in ((module.w, 30), (module.r, 20), (module.u, 20)):
        bound = (6 / (20 + size)) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound
    assert (module.b == 0).all()


# ---- the cell


@torch.no_grad()
def test_cell_from_an_empty_tape_equals_the_op() -> None:
    module, x = cell(), random_tensor(3, 2, TAPE, SIZE)
    empty = {name: torch.zeros_like(value) for name, value in initial_state(module).items()}
    output, state = run(module, x, empty)
    weights = [p.numpy() for p in (module.w, module.r, module.bias, module.u, module.v)]
    expected, last, _, _ = op.oracle(x.flatten(0, 1).numpy(), np.full(6, TAPE), *weights)
    np.testing.assert_allclose(output.flatten(0, 1), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(module.query(state).flatten(0, 1), last, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_initial_state_is_the_first_entry_of_the_tape() -> None:
    """The summary of one entry is that entry, so the first step equals an LSTM's."""
    module, x = cell(), random_tensor(3, 2, SIZE)
    state = initial_state(module)
    assert (state["count"] == 1).all()
    initial = {name: random_tensor(3, 2, HIDDEN, seed=i) for i, name in enumerate(module.final_states)}
    assert torch.equal(module.query(state), initial["hidden"])

    lstm = LstmCell(SIZE, HIDDEN).double()
    gates = slice(0, 4 * HIDDEN)
    lstm.load_state_dict({"w": module.w[gates], "r": module.r[gates], "bias": module.bias[gates]})
    expected, _ = lstm(nn.functional.linear(x, *lstm.projection()), initial)
    actual, _ = module(nn.functional.linear(x, *module.projection()), state)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_full_tape_drops_only_its_oldest_entry() -> None:
    """It continues as a longer tape does whose older slots are empty."""
    short, long, x = cell(3), cell(), random_tensor(3, 2, 6, SIZE)
    outputs, state = run(short, x[:, :, :5], initial_state(short))
    unlimited, _ = run(long, x, initial_state(long))
    torch.testing.assert_close(outputs[:, :, :3], unlimited[:, :, :3], rtol=1e-12, atol=1e-12)
    assert not torch.isclose(outputs[:, :, 3], unlimited[:, :, 3]).any()

    _, long_state = run(long, x[:, :, :5], initial_state(long))
    for name in ("keys", "states"):
        long_state[name][:, :, : TAPE - 3] = 1e3
        long_state[name][:, :, TAPE - 3 :] = state[name]
    long_state["count"][:], long_state["query"] = 3, state["query"]
    torch.testing.assert_close(run(short, x[:, :, 5:], state)[0], run(long, x[:, :, 5:], long_state)[0])


@torch.no_grad()
def test_hypotheses_are_independent() -> None:
    module, x, state = cell(), random_tensor(3, 2, 4, SIZE), initial_state(cell())
    together, _ = run(module, x, state)
    for batch, beam in itertools.product(range(3), range(2)):
        one = (slice(batch, batch + 1), slice(beam, beam + 1))
        alone, _ = run(module, x[one], {name: value[one] for name, value in state.items()})
        torch.testing.assert_close(alone, together[one], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_state_has_constant_shapes_and_types() -> None:
    module = cell()
    first = initial_state(module)
    _, last = run(module, random_tensor(3, 2, 2 * TAPE, SIZE), first)
    assert {n: (v.shape, v.dtype) for n, v in first.items()} == {n: (v.shape, v.dtype) for n, v in last.items()}


# ---- export


class Step(nn.Module):
    """A cell with its state as inputs and outputs."""

    def __init__(self, module: LstmnCell) -> None:
        super().__init__()
        self.cell = module

    def forward(self, x: Tensor, keys: Tensor, states: Tensor, query: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        state = {"keys": keys, "states": states, "query": query, "count": count}
        output, following = self.cell(nn.functional.linear(x, *self.cell.projection()), state)
        return (output, *(following[name] for name in state))


class FlatLayer(LstmnLayer):
    """A layer that returns one flat tuple."""

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        output, finals = super().forward(x, lengths)
        return output, *finals


ROW = ["batch", "beam"]
STATE = {
    "keys": ("float32", [*ROW, TAPE, HIDDEN]),
    "states": ("float32", [*ROW, TAPE, 2 * HIDDEN]),
    "query": ("float32", [*ROW, HIDDEN]),
    "count": ("int64", [*ROW, 1], [0, 2 * TAPE]),
}
FINAL = ("float32", ["batch", 2 * HIDDEN])
MODULES = {
    "layer": (
        FlatLayer("lstmn", SIZE, HIDDEN),
        {"x": ("float32", ["batch", "src", SIZE]), "lengths": ("int64", ["batch"], [0, "src"])},
        {"output": ("float32", ["batch", "src", 2 * HIDDEN]), "last": FINAL, "last_cell": FINAL},
        ["IntraAttention", "IntraAttention"],
    ),
    "step": (
        Step(LstmnCell(SIZE, HIDDEN, TAPE)),
        {"x": ("float32", [*ROW, SIZE]), **STATE},
        {"output": ("float32", [*ROW, HIDDEN]), **{f"next_{name}": described[:2] for name, described in STATE.items()}},
        ["AdditiveAttention"],
    ),
}


def exported(name: str, path: Path) -> GraphSpec:
    """Export the module; `export_module` compares it with torch at twelve shapes."""
    module, inputs, outputs, _ = MODULES[name]
    return export_module(module, path, inputs, outputs)


@pytest.mark.parametrize("name", MODULES)
def test_export_has_one_node_for_each_op(name: str, tmp_path: Path) -> None:
    exported(name, tmp_path / "module.onnx")
    nodes = onnx.load(tmp_path / "module.onnx").graph.node
    assert [node.op_type for node in nodes if node.domain == "edge_attn"] == MODULES[name][3]
    assert not {"Scan", "Loop", "Softmax"} & {node.op_type for node in nodes}


@pytest.mark.rtx
@pytest.mark.parametrize("name", MODULES)
def test_tensorrt_builds_the_export(name: str, tmp_path: Path, build_with_tensorrt: Any) -> None:
    spec = exported(name, tmp_path / "module.onnx")
    build_with_tensorrt(onnx.load(tmp_path / "module.onnx"), spec)
