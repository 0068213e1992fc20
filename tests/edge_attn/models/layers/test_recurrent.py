"""Recurrent layers and cells equal torch's after a reordering of their gates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from edge_attn import registry
from edge_attn.models.layers.recurrent import GATES, Cell, GruCell, LstmCell, RecurrentLayer
from edge_attn.registry import resolve

torch.set_num_threads(1)

FROM_TORCH = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
"""Index of each of our gates (z r h; i o f c) in torch's order (r z n; i f g o)."""
SIZE, HIDDEN = 5, 4
CELLS: dict[str, type[Cell]] = {"gru": GruCell, "lstm": LstmCell}


def in_our_order(cell: str, weight: Tensor) -> Tensor:
    gates = weight.detach().chunk(GATES[cell])
    return torch.cat([gates[i] for i in FROM_TORCH[cell]])


def torch_layer(cell: str) -> nn.Module:
    torch.manual_seed(0)
    return {"gru": nn.GRU, "lstm": nn.LSTM}[cell](SIZE, HIDDEN, batch_first=True, bidirectional=True).double()


def our_layer(cell: str, theirs: nn.Module) -> RecurrentLayer:
    weights, layer = dict(theirs.named_parameters()), RecurrentLayer(cell, SIZE, HIDDEN).double()
    for d, suffix in enumerate(("", "_reverse")):
        w, r, bias_w, bias_r = (
            in_our_order(cell, weights[f"{part}_l0{suffix}"])
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        layer.w.data[d], layer.r.data[d], layer.b.data[d] = w, r, torch.cat([bias_w, bias_r])
    return layer


def sequences(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def torch_states(module: nn.Module, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return output and final states of torch's layer in our shapes, each state (batch, 2 hidden)."""
    output, states = module(x)
    states = states if isinstance(states, tuple) else (states,)
    return output, tuple(state.transpose(0, 1).flatten(1) for state in states)


@pytest.mark.parametrize("cell", GATES)
def test_layer_equals_torch(cell: str) -> None:
    theirs = torch_layer(cell)
    x = sequences(3, 6, SIZE)
    output, finals = our_layer(cell, theirs)(x, torch.full((3,), 6))
    expected, expected_finals = torch_states(theirs, x)
    assert len(finals) == len(CELLS[cell].final_states)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(finals, expected_finals, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", GATES)
@torch.no_grad()
def test_row_is_independent_of_padding_and_batch(cell: str) -> None:
    theirs, lengths = torch_layer(cell), [2, 6, 1, 5]
    layer, x = our_layer(cell, theirs), sequences(4, 6, SIZE)
    for row, length in enumerate(lengths):
        x[row, length:] = 1e3
    output, finals = layer(x, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        expected, expected_finals = torch_states(theirs, x[row : row + 1, :length])
        torch.testing.assert_close(output[row : row + 1, :length], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(tuple(f[row : row + 1] for f in finals), expected_finals, rtol=1e-12, atol=1e-12)
        assert (output[row, length:] == 0).all()


@pytest.mark.parametrize("lengths", [(0, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("cell", GATES)
@torch.no_grad()
def test_empty_row_is_zero(cell: str, lengths: tuple[int, ...]) -> None:
    layer = our_layer(cell, torch_layer(cell))
    output, finals = layer(sequences(3, 4, SIZE), torch.tensor(lengths))
    assert output.shape == (3, 4, 2 * HIDDEN)
    for row, length in enumerate(lengths):
        for result in (output[row], *(final[row] for final in finals)):
            assert (result == 0).all() == (length == 0)


@pytest.mark.parametrize("cell", GATES)
def test_parameters_have_onnx_shapes(cell: str) -> None:
    gates, layer = GATES[cell], RecurrentLayer(cell, SIZE, HIDDEN)
    assert {name: tuple(value.shape) for name, value in layer.named_parameters()} == {
        "w": (2, gates * HIDDEN, SIZE),
        "r": (2, gates * HIDDEN, HIDDEN),
        "b": (2, 2 * gates * HIDDEN),
    }


@pytest.mark.parametrize("cell", GATES)
def test_initial_weights_are_within_glorots_bound(cell: str) -> None:
    torch.manual_seed(0)
    layer = RecurrentLayer(cell, 30, 20)
    for weight, size in ((layer.w, 30), (layer.r, 20)):
        bound = math.sqrt(6 / (20 + size))
        assert 0.95 * bound < weight.abs().max() <= bound
    assert (layer.b == 0).all()


# ---- cells


def torch_cell(cell: str) -> nn.Module:
    torch.manual_seed(0)
    return {"gru": nn.GRUCell, "lstm": nn.LSTMCell}[cell](SIZE, HIDDEN).double()


def our_cell(cell: str, theirs: nn.Module) -> Cell:
    w, r, bias_w, bias_r = (
        in_our_order(cell, value) for value in (theirs.weight_ih, theirs.weight_hh, theirs.bias_ih, theirs.bias_hh)
    )
    ours = CELLS[cell](SIZE, HIDDEN).double()
    biases = {"gru": {"bias_w": bias_w, "bias_r": bias_r}, "lstm": {"bias": bias_w + bias_r}}[cell]
    ours.load_state_dict({"w": w, "r": r, **biases})
    return ours


def states(cell: str, *axes: int) -> dict[str, Tensor]:
    return {name: sequences(*axes, HIDDEN) * (0.5 + i) for i, name in enumerate(CELLS[cell].final_states)}


def step(ours: Cell, x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    output, following = ours(nn.functional.linear(x, *ours.projection()), state)
    assert output is following["hidden"]
    return following


def test_every_cell_has_a_layer() -> None:
    assert registry.CELLS.keys() == registry.LAYERS.keys()
    for name, cell in CELLS.items():
        assert resolve("cell", registry.CELLS, name) is cell
        assert resolve("cell", registry.LAYERS, name) is RecurrentLayer


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_cell_equals_torch(cell: str) -> None:
    theirs, x, state = torch_cell(cell), sequences(3, SIZE), states(cell, 3)
    initial = tuple(state.values())
    expected = theirs(x, initial if len(initial) > 1 else initial[0])
    actual = tuple(step(our_cell(cell, theirs), x, state).values())
    torch.testing.assert_close(actual, expected if len(state) > 1 else (expected,), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_cell_accepts_a_beam_axis(cell: str) -> None:
    """The search calls it with states (batch, beam, ...)."""
    ours, x, state = our_cell(cell, torch_cell(cell)), sequences(3, 2, SIZE), states(cell, 3, 2)
    actual = step(ours, x, state)
    expected = step(ours, x.flatten(0, 1), {name: s.flatten(0, 1) for name, s in state.items()})
    torch.testing.assert_close({n: a.flatten(0, 1) for n, a in actual.items()}, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_cell_from_zero_equals_the_first_direction(cell: str) -> None:
    """A decoder cell and an encoder layer of the same name have the same equations."""
    layer, ours = our_layer(cell, torch_layer(cell)), CELLS[cell](SIZE, HIDDEN).double()
    bias_w, bias_r = layer.b[0].chunk(2)
    biases = {"gru": {"bias_w": bias_w, "bias_r": bias_r}, "lstm": {"bias": bias_w + bias_r}}[cell]
    ours.load_state_dict({"w": layer.w[0], "r": layer.r[0], **biases})

    x = sequences(2, 4, SIZE)
    output, _ = layer(x, torch.full((2,), 4))
    state = {name: torch.zeros(2, HIDDEN, dtype=torch.float64) for name in ours.final_states}
    for t in range(4):
        state = step(ours, x[:, t], state)
        torch.testing.assert_close(state["hidden"], output[:, t, :HIDDEN], rtol=1e-12, atol=1e-12)
