"""The moving average of the weights is validated and stored, and the run itself does not change."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import a_run, digest

from edge_attn import checkpoint
from edge_attn.checkpoint import named_weights
from edge_attn.training.averaging import Average
from edge_attn.training.run import train


def test_average_is_the_recurrence_of_the_docstring():
    model = torch.nn.Linear(3, 2)
    average = Average(model, 0.5)
    expected = model.weight.detach().clone()
    for number in range(9):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.weights["weight"], expected)
    before = model.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, before)


def test_stored_model_is_the_average(tiny, out):
    path = tiny("average = 0.9\n", updates=8, validate_every=8)
    train(path, out)
    run, _ = a_run(path, out)
    stored = named_weights(checkpoint.load(out)[0])
    for name, value in run.average.weights.items():
        torch.testing.assert_close(stored[name], value, atol=1e-3, rtol=1e-3)
    assert any(not torch.equal(value, run.average.weights[name]) for name, value in named_weights(run.model).items())


def test_resumed_run_continues_the_average(tiny, out, tmp_path):
    train(tiny("average = 0.9\n", updates=8), out)
    whole = digest(out)
    stopped = tmp_path / "stopped"
    path = tiny("average = 0.9\n", updates=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_attn.training.trainer.Trainer.update", stop_at(5))
        with pytest.raises(KeyboardInterrupt):
            train(path, stopped)
    train(path, stopped)
    assert digest(stopped) == whole


def stop_at(number):
    """Return an update that interrupts the run at update `number`."""
    from edge_attn.training.trainer import Trainer

    original = Trainer.update

    def update(self, batch):
        if self.progress.update == number:
            raise KeyboardInterrupt
        return original(self, batch)

    return update
