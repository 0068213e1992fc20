"""Hard attention with `hard_training = "reinforce"`: its reward and its baseline."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import a_run, alone_and_shared, digest, have_the_same_weights, progress

from edge_attn.training import trainer
from edge_attn.training.run import train

BY_REWARD = '[model]\nfocus = "hard"\nhard_training = "reinforce"\n'


@pytest.fixture
def rewarded(tiny):
    """Return `tiny` with hard attention and `hard_training = "reinforce"`."""

    def rewarded(**options: int) -> Path:
        path = tiny(**options)
        path.write_text(path.read_text().replace("[model]\n", BY_REWARD))
        return path

    return rewarded


def test_reward_is_the_log_probability_over_the_baseline():
    choices = torch.tensor([-1.0, -2.0], requires_grad=True)
    log_probs = torch.tensor([-0.5, -3.0], requires_grad=True)
    loss = trainer.reinforce(log_probs, choices, baseline=-1.0)
    assert loss.item() == pytest.approx(-(0.5 * -1.0 + -2.0 * -2.0))
    loss.backward()
    assert choices.grad.tolist() == [-0.5, 2.0]  # a choice better than the baseline becomes more likely
    assert log_probs.grad is None


def test_baseline_averages_the_reference_log_probability(rewarded, out, monkeypatch):
    run, pairs = a_run(rewarded(), out)
    means = []
    forward_batch = run.forward_batch

    def spy(batch):
        logits, expected, choices = forward_batch(batch)
        means.append(float(logits.detach().log_softmax(-1)[torch.arange(len(expected)), expected].mean()))
        return logits, expected, choices

    monkeypatch.setattr(run, "forward_batch", spy)
    baseline = 0.0
    for i in range(3):
        assert run.progress.baseline == pytest.approx(baseline, rel=1e-5)
        run.update(pairs.batch(np.arange(8 * i, 8 * i + 8)))
        baseline = 0.9 * baseline + 0.1 * means[-1]
    assert run.progress.baseline == pytest.approx(baseline, rel=1e-5)
    assert baseline < -0.5


def test_reward_is_the_only_gradient_of_the_energies(rewarded, out, monkeypatch):
    """Without the reward no gradient passes through the choice. The reported loss is the cross-entropy."""

    def updated(reinforce):
        monkeypatch.setattr(trainer, "reinforce", reinforce)
        run, pairs = a_run(rewarded(), out)
        monkeypatch.setattr(run.optimizer, "step", lambda: None)
        loss = run.update(pairs.batch(np.arange(8)))
        return loss, {name: p.grad for name, p in run.model.named_parameters() if "score" in name}

    loss, gradients = updated(trainer.reinforce)
    without_loss, without = updated(lambda log_probs, choices, baseline: 0.0 * choices.sum())
    assert loss == without_loss
    assert gradients.keys() == without.keys()
    assert len(gradients) == 4  # W, U, b, v
    assert all((gradient != 0).any() for gradient in gradients.values())
    assert all((gradient == 0).all() for gradient in without.values())


def test_killed_run_has_the_same_weights(rewarded, out, tmp_path, monkeypatch):
    train(rewarded(), out)
    killed, save, states = tmp_path / "killed", trainer.save_state, []

    def save_and_die(*args):
        save(*args)
        states.append(dataclasses.replace(args[3]))
        if len(states) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_state", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(rewarded(), killed)
    assert progress(killed)["baseline"] == states[-1].baseline < -0.1
    train(rewarded(), killed)
    assert digest(killed) == digest(out)


def test_state_of_an_earlier_version_resumes(tiny, out, monkeypatch):
    """It has no baseline, and `bad_validations` has its former name."""
    train(tiny(), out)
    expected, save = digest(out), trainer.save_state
    older = out.with_name("older")

    def save_and_die(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_state", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), older)
    values = progress(older)
    del values["baseline"]
    values["worse"] = values.pop("bad_validations")
    path = older / "training.safetensors"
    save_file(load_file(path), path, {"progress": json.dumps(values)})
    monkeypatch.undo()
    train(tiny(), older)
    assert digest(older) == expected


def test_processes_share_the_baseline(rewarded, out, monkeypatch):
    alone, shared = alone_and_shared(rewarded(), out, monkeypatch)
    assert shared.progress.baseline == pytest.approx(alone.progress.baseline, rel=1e-6)
    assert have_the_same_weights(alone, shared)
