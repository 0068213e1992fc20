"""Hard attention that is trained by reward: what is rewarded, by how much, and the baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import a_run, alone_and_shared, digest, have_the_same_weights, progress

from edge_attn import checkpoint
from edge_attn.training import trainer as loop
from edge_attn.training.trainer import train

BY_REWARD = '[model]\nfocus = "hard"\nhard_training = "reinforce"\n'


@pytest.fixture
def rewarded(tiny):
    """`tiny` with a hard attention that is trained by reward."""

    def rewarded(**options: int) -> Path:
        path = tiny(**options)
        path.write_text(path.read_text().replace("[model]\n", BY_REWARD))
        return path

    return rewarded


def test_a_choice_is_rewarded_by_what_its_token_gained_over_the_baseline():
    choices = torch.tensor([-1.0, -2.0], requires_grad=True)
    log_probs = torch.tensor([-0.5, -3.0], requires_grad=True)
    loss = loop.reinforce(log_probs, choices, baseline=-1.0)
    assert loss.item() == pytest.approx(-(0.5 * -1.0 + -2.0 * -2.0))
    loss.backward()
    assert choices.grad.tolist() == [-0.5, 2.0]  # what did better than the baseline becomes likelier
    assert log_probs.grad is None


def test_the_baseline_follows_the_log_probability_of_the_right_tokens(rewarded, out, monkeypatch):
    run, pairs = a_run(rewarded(), out)
    seen = []
    taught = run.taught

    def spy(batch):
        logits, expected, choices = taught(batch)
        seen.append(float(logits.detach().log_softmax(-1)[torch.arange(len(expected)), expected].mean()))
        return logits, expected, choices

    monkeypatch.setattr(run, "taught", spy)
    baseline = 0.0
    for i in range(3):
        assert run.progress.baseline == pytest.approx(baseline, rel=1e-5)
        run.update(pairs.batch(np.arange(8 * i, 8 * i + 8)))
        baseline = 0.9 * baseline + 0.1 * seen[-1]
    assert run.progress.baseline == pytest.approx(baseline, rel=1e-5)
    assert baseline < -0.5


def test_what_was_chosen_is_heard_by_the_energies_and_by_nothing_else_of_the_loss(rewarded, out, monkeypatch):
    """Without the reward no gradient passes through the choice; the loss that is reported is the cross-entropy."""

    def updated(reinforce):
        monkeypatch.setattr(loop, "reinforce", reinforce)
        run, pairs = a_run(rewarded(), out)
        monkeypatch.setattr(run.optimizer, "step", lambda: None)
        loss = run.update(pairs.batch(np.arange(8)))
        return loss, {name: p.grad for name, p in run.model.named_parameters() if "score" in name}

    loss, gradients = updated(loop.reinforce)
    without_loss, without = updated(lambda log_probs, choices, baseline: 0.0 * choices.sum())
    assert loss == without_loss
    assert gradients.keys() == without.keys()
    assert len(gradients) == 4  # W, U, b, v
    assert all((gradient != 0).any() for gradient in gradients.values())
    assert all((gradient == 0).all() for gradient in without.values())


def test_a_run_by_reward_that_was_killed_ends_in_the_same_weights(rewarded, out, tmp_path, monkeypatch):
    train(rewarded(), out)
    killed, save, states = tmp_path / "killed", checkpoint.save_state, []

    def save_and_die(*args):
        save(*args)
        states.append(args[-1])
        if len(states) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_state", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(rewarded(), killed)
    assert progress(killed)["baseline"] == states[-1]["baseline"] < -0.1
    train(rewarded(), killed)
    assert digest(killed) == digest(out)


def test_a_state_of_before_there_was_a_baseline_still_loads(tiny, out, monkeypatch):
    train(tiny(), out)
    whole, save = digest(out), checkpoint.save_state
    older = out.with_name("older")

    def save_and_die(folder, model, optimizer, progress):
        save(folder, model, optimizer, {name: value for name, value in progress.items() if name != "baseline"})
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_state", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), older)
    assert "baseline" not in progress(older)
    monkeypatch.undo()
    train(tiny(), older)
    assert digest(older) == whole


def test_processes_share_one_baseline(rewarded, out, monkeypatch):
    alone, shared = alone_and_shared(rewarded(), out, monkeypatch)
    assert shared.progress.baseline == pytest.approx(alone.progress.baseline, rel=1e-6)
    assert have_the_same_weights(alone, shared)
