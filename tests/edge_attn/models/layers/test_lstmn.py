"""LSTMN: a layer is its oracle in both directions, a cell is the layer a step at a time, and both reach TensorRT."""

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


def shaken(module: nn.Module) -> Any:
    """In float64, with biases that are not zero."""
    for i, parameter in enumerate(module.double().parameters()):
        parameter.data += 0.3 * random_tensor(*parameter.shape, seed=i)
    return module


def layer() -> LstmnLayer:
    torch.manual_seed(0)
    made: LstmnLayer = shaken(LstmnLayer("lstmn", SIZE, HIDDEN))
    return made


def cell(tape: int = TAPE) -> LstmnCell:
    torch.manual_seed(0)
    made: LstmnCell = shaken(LstmnCell(SIZE, HIDDEN, tape))
    return made


def started(module: LstmnCell, batch: int = 3, beam: int = 2) -> dict[str, Tensor]:
    return module.start(
        {name: random_tensor(batch, beam, HIDDEN, seed=i) for i, name in enumerate(module.final_states)}
    )


def run(module: LstmnCell, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """x (batch, beam, time, size) -> outputs (batch, beam, time, hidden), the last state."""
    outputs = []
    for now in x.unbind(2):
        output, state = module(nn.functional.linear(now, *module.projection()), state)
        outputs.append(output)
    return torch.stack(outputs, 2), state


# ---- the layer


@torch.no_grad()
def test_a_layer_is_the_oracle_over_each_row_and_over_each_row_turned_round() -> None:
    module, x = layer(), random_tensor(4, 7, SIZE)
    output, ends = module(x, torch.tensor(LENGTHS))
    turned = x.clone()
    for row, length in enumerate(LENGTHS):
        turned[row, :length] = x[row, :length].flip(0)
    for d, way in enumerate((x, turned)):
        weights = [parameter[d].numpy() for parameter in (module.w, module.r, module.b, module.u, module.v)]
        wanted, *wanted_ends, _ = map(torch.from_numpy, op.oracle(way.numpy(), np.array(LENGTHS), *weights))
        part = slice(d * HIDDEN, (d + 1) * HIDDEN)
        for row, length in enumerate(LENGTHS):
            actual = output[row, :length, part]
            torch.testing.assert_close(actual.flip(0) if d else actual, wanted[row, :length], rtol=1e-12, atol=1e-12)
            assert (output[row, length:] == 0).all()
        torch.testing.assert_close([end[:, part] for end in ends], wanted_ends, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_that_of_the_values() -> None:
    module = layer()
    inputs = [random_tensor(4, 3, SIZE), *(p[0].detach() for p in (module.w, module.r, module.b, module.u, module.v))]
    lengths = torch.tensor([3, 2, 0, 1])

    def call(x: Tensor, *weights: Tensor) -> Any:
        return intra_attention(x, lengths, *weights)

    assert torch.autograd.gradcheck(call, [tensor.requires_grad_() for tensor in inputs])


def test_padding_and_empty_rows_get_and_give_no_gradient() -> None:
    module, lengths = layer(), torch.tensor(LENGTHS)
    x = random_tensor(4, 7, SIZE).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # a NaN on the way raises, even one that is masked later
        output, ends = module(x, lengths)
        (output.square().sum() + sum(end.square().sum() for end in ends)).backward()
    padding = torch.arange(7) >= lengths[:, None]
    assert x.grad is not None
    assert (x.grad[padding] == 0).all()
    assert (x.grad[~padding] != 0).any(-1).all()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).flatten(1).any(1).all(), name


def test_weights_start_within_glorots_bound_of_one_block_and_biases_at_zero() -> None:
    torch.manual_seed(0)
    module = LstmnLayer("lstmn", 30, 20)
    for weight, size in ((module.w, 30), (module.r, 20), (module.u, 20)):
        bound = (6 / (20 + size)) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound
    assert (module.b == 0).all()


# ---- the cell


@torch.no_grad()
def test_a_cell_stepped_from_an_empty_tape_is_the_op() -> None:
    module, x = cell(), random_tensor(3, 2, TAPE, SIZE)
    empty = {name: torch.zeros_like(value) for name, value in started(module).items()}
    output, state = run(module, x, empty)
    weights = [p.numpy() for p in (module.w, module.r, module.bias, module.u, module.v)]
    wanted, last, _, _ = op.oracle(x.flatten(0, 1).numpy(), np.full(6, TAPE), *weights)
    np.testing.assert_allclose(output.flatten(0, 1), wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(module.query(state).flatten(0, 1), last, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_what_a_decoder_starts_from_is_the_tapes_first_entry() -> None:
    """So the first step is that of an LSTM: of one entry the summary is that entry."""
    module, x = cell(), random_tensor(3, 2, SIZE)
    state = started(module)
    assert (state["count"] == 1).all()
    given = {name: random_tensor(3, 2, HIDDEN, seed=i) for i, name in enumerate(module.final_states)}
    assert torch.equal(module.query(state), given["hidden"])

    lstm = LstmCell(SIZE, HIDDEN).double()
    gates = slice(0, 4 * HIDDEN)
    lstm.load_state_dict({"w": module.w[gates], "r": module.r[gates], "bias": module.bias[gates]})
    wanted, _ = lstm(nn.functional.linear(x, *lstm.projection()), given)
    actual, _ = module(nn.functional.linear(x, *module.projection()), state)
    torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_full_tape_forgets_its_oldest_entry_alone() -> None:
    """It goes on as a longer tape does on which nothing but the newest entries is real."""
    short, long, x = cell(3), cell(), random_tensor(3, 2, 6, SIZE)
    outputs, state = run(short, x[:, :, :5], started(short))
    unlimited, _ = run(long, x, started(long))
    torch.testing.assert_close(outputs[:, :, :3], unlimited[:, :, :3], rtol=1e-12, atol=1e-12)
    assert not torch.isclose(outputs[:, :, 3], unlimited[:, :, 3]).any()

    _, kept = run(long, x[:, :, :5], started(long))
    for name in ("keys", "states"):
        kept[name][:, :, : TAPE - 3] = 1e3
        kept[name][:, :, TAPE - 3 :] = state[name]
    kept["count"][:], kept["query"] = 3, state["query"]
    torch.testing.assert_close(run(short, x[:, :, 5:], state)[0], run(long, x[:, :, 5:], kept)[0])


@torch.no_grad()
def test_hypotheses_are_rows_of_their_own() -> None:
    module, x, state = cell(), random_tensor(3, 2, 4, SIZE), started(cell())
    together, _ = run(module, x, state)
    for batch, beam in itertools.product(range(3), range(2)):
        one = (slice(batch, batch + 1), slice(beam, beam + 1))
        alone, _ = run(module, x[one], {name: value[one] for name, value in state.items()})
        torch.testing.assert_close(alone, together[one], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_state_keeps_its_shapes_and_types() -> None:
    module = cell()
    first = started(module)
    _, last = run(module, random_tensor(3, 2, 2 * TAPE, SIZE), first)
    assert {n: (v.shape, v.dtype) for n, v in first.items()} == {n: (v.shape, v.dtype) for n, v in last.items()}


# ---- on its way to a device


class Step(nn.Module):
    """A cell with its state as inputs and outputs."""

    def __init__(self, module: LstmnCell) -> None:
        super().__init__()
        self.cell = module

    def forward(self, x: Tensor, keys: Tensor, states: Tensor, query: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        state = {"keys": keys, "states": states, "query": query, "count": count}
        output, following = self.cell(nn.functional.linear(x, *self.cell.projection()), state)
        return (output, *(following[name] for name in state))


class Ends(LstmnLayer):
    """A layer whose outputs stand side by side."""

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        output, ends = super().forward(x, lengths)
        return output, *ends


ROW = ["batch", "beam"]
STATE = {
    "keys": ("float32", [*ROW, TAPE, HIDDEN]),
    "states": ("float32", [*ROW, TAPE, 2 * HIDDEN]),
    "query": ("float32", [*ROW, HIDDEN]),
    "count": ("int64", [*ROW, 1], [0, 2 * TAPE]),
}
END = ("float32", ["batch", 2 * HIDDEN])
MODULES = {
    "layer": (
        Ends("lstmn", SIZE, HIDDEN),
        {"x": ("float32", ["batch", "src", SIZE]), "lengths": ("int64", ["batch"], [0, "src"])},
        {"output": ("float32", ["batch", "src", 2 * HIDDEN]), "last": END, "last_cell": END},
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
    """Checked against torch in ONNX Runtime, at twelve shapes, by `export_module` itself."""
    module, inputs, outputs, _ = MODULES[name]
    return export_module(module, path, inputs, outputs)


@pytest.mark.parametrize("name", MODULES)
def test_it_exports_with_one_node_an_op_and_says_what_torch_says(name: str, tmp_path: Path) -> None:
    exported(name, tmp_path / "module.onnx")
    nodes = onnx.load(tmp_path / "module.onnx").graph.node
    assert [node.op_type for node in nodes if node.domain == "edge_attn"] == MODULES[name][3]
    assert not {"Scan", "Loop", "Softmax"} & {node.op_type for node in nodes}


@pytest.mark.rtx
@pytest.mark.parametrize("name", MODULES)
def test_tensorrt_builds_it_with_its_functions_and_without(name: str, tmp_path: Path, tensorrt_builds: Any) -> None:
    spec = exported(name, tmp_path / "module.onnx")
    tensorrt_builds(onnx.load(tmp_path / "module.onnx"), spec)
