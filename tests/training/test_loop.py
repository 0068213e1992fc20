"""A run learns, is a function of its configuration and data however often it is killed, and says what is wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_attn.config import TrainingConfig, read_config
from edge_attn.errors import CheckpointError, ConfigError, InputError, UsageError
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.pairs import read_pairs
from edge_attn.text import BOS, EOS, Text
from edge_attn.training import checkpoint, loop
from edge_attn.training.data import Pairs, choose_samples
from edge_attn.training.loop import Run, learning_rate, train

FILES = {"config.json", "model.safetensors", "training.safetensors", "text"}
TRAIN = (
    "import sys; from pathlib import Path; from edge_attn.training.loop import train\n"
    "train(Path(sys.argv[1]), Path(sys.argv[2]), threads=1)"
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(loop.__file__).parents[2])}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reversals(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences of letters, and the same backwards."""
    random = np.random.default_rng(seed)
    sources = [" ".join("abcdef"[i] for i in random.integers(0, 6, random.integers(1, 6))) for _ in range(count)]
    return [(source, source[::-1]) for source in sources]


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> None:
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs))


TINY = """
[data]
train = "train.tsv"
valid = "valid.tsv"
[text]
kind = "words"
[model]
embedding = 6
encoder_hidden = 5
decoder_hidden = 7
attention_size = 4
dropout = 0.1
[training]
updates = {updates}
warmup = 4
batch_tokens = 60
validate_every = {validate_every}
checkpoint_every = {checkpoint_every}
learning_rate = 0.01
storage = "fp16"
"""


@pytest.fixture
def tiny(tmp_path):
    """Writes pairs and a configuration that trains in a fraction of a second; gives the configuration's path."""
    write_pairs(tmp_path / "train.tsv", reversals(200, 1))
    write_pairs(tmp_path / "valid.tsv", reversals(40, 2))

    def tiny(more: str = "", updates: int = 10, validate_every: int = 4, checkpoint_every: int = 3) -> Path:
        content = TINY.format(updates=updates, validate_every=validate_every, checkpoint_every=checkpoint_every)
        (tmp_path / "tiny.toml").write_text(content + more)
        return tmp_path / "tiny.toml"

    return tiny


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def a_run(config_path: Path, out: Path, world: int = 1) -> tuple[Run, Pairs]:
    config = read_config(config_path)
    pairs = read_pairs(config_path.parent / "train.tsv")
    text = Text.train("words", pairs, 20, 20)
    out.mkdir(exist_ok=True)
    return Run(config, text, out, 0, world), Pairs.encode(text, pairs, 100)


# ---- what a run leaves


def test_a_run_writes_a_whole_checkpoint(tiny, out):
    train(tiny(), out)
    model, text, config = checkpoint.load(out)
    assert isinstance(model, Seq2Seq)
    assert config == read_config(tiny())
    assert {path.name for path in out.iterdir()} == FILES
    assert {path.name for path in (out / "text").iterdir()} == {
        "text.json",
        "source.json",
        "target.json",
        "samples.txt",
    }
    sources = [source for source, _ in read_pairs(tiny().parent / "valid.tsv")]
    samples = checkpoint.load_samples(out)
    assert samples == choose_samples(text, sources)
    assert len(samples) == len(set(sources))


def test_the_same_run_ends_in_the_same_weights_and_another_seed_does_not(tiny, out, tmp_path):
    train(tiny(), out)
    train(tiny(), tmp_path / "again")
    train(tiny("seed = 2\n"), tmp_path / "other")
    assert digest(out) == digest(tmp_path / "again") != digest(tmp_path / "other")


def test_a_run_that_ended_stays_as_it_is(tiny, out):
    train(tiny(), out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    train(tiny(), out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_samples_are_written_for_an_older_run_too(tiny, out):
    train(tiny(), out)
    samples = checkpoint.load_samples(out)
    (out / "text" / "samples.txt").unlink()
    train(tiny(), out)
    assert checkpoint.load_samples(out) == samples


def test_samples_are_no_longer_than_the_longest_pair(tiny, out):
    train(tiny(), out)
    longest = max(len(sample.split()) for sample in checkpoint.load_samples(out))
    assert longest == 5
    path = tiny()
    path.write_text(path.read_text().replace("[text]", "max_tokens = 4\n[text]"))
    train(path, out.with_name("short"))
    assert max(len(sample.split()) for sample in checkpoint.load_samples(out.with_name("short"))) == 3  # and eos


def test_held_out_lines_are_not_trained_on(tiny, out):
    path = tiny()
    path.write_text(path.read_text().replace('valid = "valid.tsv"', "holdout = 30"))
    train(path, out)
    held_out = {source for source, _ in reversals(200, 1)[-30:]}
    assert set(checkpoint.load_samples(out)) == held_out


def test_data_may_lie_elsewhere_and_be_compressed(tiny, out, tmp_path):
    import gzip

    path = tiny()
    (tmp_path / "elsewhere").mkdir()
    for name in ("train.tsv", "valid.tsv"):
        (tmp_path / "elsewhere" / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    plain = tmp_path / "plain"
    train(path, plain)
    path.write_text(path.read_text().replace('.tsv"', '.tsv.gz"'))
    train(path, out, tmp_path / "elsewhere")
    assert digest(out) == digest(plain)


# ---- learning


LEARNS = """
[data]
train = "train.tsv"
valid = "valid.tsv"
[text]
kind = "words"
[model]
embedding = 24
encoder_hidden = 24
decoder_hidden = 48
attention_size = 24
{focus}
[training]
updates = {updates}
warmup = 30
batch_tokens = 192
validate_every = 100
checkpoint_every = {updates}
learning_rate = 0.01
"""


def greedy(model: Seq2Seq, text: Text, sentence: str) -> str:
    ids = text.encode_source(sentence)
    with torch.no_grad():
        memory, state = model.encode(torch.tensor([ids]), torch.tensor([len(ids)]))
        tokens = [BOS]
        while len(tokens) < 20 and tokens[-1] != EOS:
            features, _, state = model.step(model.embedding(torch.tensor([[tokens[-1]]])), memory, state)
            tokens.append(int(model.logits(features)[0, 0].argmax()))
    return text.target.decode(tokens[1:-1])


@pytest.mark.parametrize(
    ("focus", "updates"),
    [
        ("", 300),
        ('normaliser = "sparsemax"', 300),
        ('focus = "local-p"\nwindow = 2\nattention = "general"', 300),
        ('focus = "hard"\nhard_training = "straight-through"', 300),
        pytest.param('focus = "hard"\nhard_training = "reinforce"', 600, marks=pytest.mark.slow),
    ],
    ids=["soft", "sparsemax", "local-p", "straight-through", "reinforce"],
)
def test_it_learns_to_reverse_sentences_that_it_never_saw(tmp_path, out, focus, updates):
    train_pairs = reversals(3000, 1)
    held_out = sorted(set(reversals(300, 2)) - set(train_pairs))
    assert len(held_out) > 50
    write_pairs(tmp_path / "train.tsv", train_pairs)
    write_pairs(tmp_path / "valid.tsv", held_out)
    (tmp_path / "run.toml").write_text(LEARNS.format(focus=focus, updates=updates))
    train(tmp_path / "run.toml", out)
    model, text, _ = checkpoint.load(out)
    right = sum(greedy(model, text, source) == target for source, target in held_out)
    assert right >= 0.95 * len(held_out)


def test_label_smoothing_and_the_sum_over_real_tokens(tiny, out):
    run, pairs = a_run(tiny(), out)
    run.model.eval()
    with torch.no_grad():
        alone = [run.loss(pairs.batch(np.array([i])), 0.0).item() for i in range(3)]
        together = run.loss(pairs.batch(np.arange(3)), 0.0).item()
        smooth = run.loss(pairs.batch(np.arange(3)), 0.2).item()
    assert together == pytest.approx(sum(alone), rel=1e-5)
    assert smooth != pytest.approx(together, rel=1e-3)


# ---- hard attention, trained by reward

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
    alone, pairs = a_run(rewarded(), out)
    alone.update(pairs.batch(np.arange(8)))
    shared, _ = a_run(rewarded(), out, world=2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    shared.update(pairs.batch(np.arange(8)))
    assert shared.progress.baseline == pytest.approx(alone.progress.baseline, rel=1e-6)
    for one, other in zip(alone.model.parameters(), shared.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


# ---- updates


def test_the_gradient_is_cut(tiny, out, monkeypatch):
    run, pairs = a_run(tiny("clip = 0.001\n"), out)
    norms = []

    def step():
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in run.model.parameters())))

    monkeypatch.setattr(run.optimizer, "step", step)
    run.update(pairs.batch(np.arange(8)))
    assert norms == [pytest.approx(0.001, rel=1e-3)]


@given(st.integers(1, 50), st.integers(0, 80))
def test_the_learning_rate_rises_and_falls(updates, warmup):
    options = TrainingConfig(updates=updates, warmup=warmup, learning_rate=0.5)
    rates = [learning_rate(options, update) for update in range(updates)]
    assert all(0.0 < rate <= 0.5 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if warmup < updates:
        assert max(rates) == pytest.approx(0.5, rel=0.5 if warmup else 1e-9)
        assert learning_rate(options, updates) == 0.0
    else:
        assert rates == [pytest.approx(0.5 * (update + 1) / warmup) for update in range(updates)]


def test_training_stops_when_validation_no_longer_improves(tiny, out, monkeypatch):
    losses, seen = iter([3.0, 2.0, 2.5, 2.0, 9.0, 1.0]), []

    def validate(self, _):
        seen.append((self.progress.update, self.model.output.weight.detach().half().float()))
        return next(losses)

    monkeypatch.setattr(Run, "validate", validate)
    path = tiny("patience = 3\n", updates=100, validate_every=2)
    train(path, out)
    assert [update for update, _ in seen] == [2, 4, 6, 8, 10]
    stored = checkpoint.load(out)[0].output.weight
    train(path, out)  # and does not go on when started again
    assert len(seen) == 5
    assert (progress(out)["best"], progress(out)["worse"]) == (2.0, 3)
    assert [torch.equal(stored, weight) for _, weight in seen] == [False, True, False, False, False]


def test_the_progress_bar_says_tokens_a_second_and_when_it_ends(tiny, out, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    train(tiny(updates=30), out)
    shown = stderr.getvalue()
    assert "30/30 [" in shown
    assert "tokens/s" in shown
    assert "validation loss" in shown
    assert "update/s" in shown


# ---- processes


def test_gradients_are_summed_over_the_processes(tiny, out, monkeypatch):
    """A second process with the very same batch changes nothing: twice the gradient, of twice the tokens."""
    alone, pairs = a_run(tiny(), out)
    alone.update(pairs.batch(np.arange(8)))
    shared, _ = a_run(tiny(), out, world=2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    shared.update(pairs.batch(np.arange(8)))
    for one, other in zip(alone.model.parameters(), shared.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_each_process_takes_its_share_of_the_validation(tiny, out, monkeypatch):
    whole, pairs = a_run(tiny(), out)
    expected, parts = whole.validate(pairs), []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: parts.append(tensor.clone()))
    for rank in range(2):
        run, _ = a_run(tiny(), out, world=2)
        run.rank = rank
        run.validate(pairs)
    total, tokens = (parts[0] + parts[1]).tolist()
    assert tokens == sum(len(target) + 1 for target in pairs.target)
    assert min(parts[0][1], parts[1][1]) > 0.3 * tokens
    assert total / tokens == pytest.approx(expected, rel=1e-6)


def wait_for(condition, process) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.002)


def torchrun(config: Path, out: Path) -> list[str]:
    (config.parent / "train_it.py").write_text(TRAIN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, str(config.parent / "train_it.py"), str(config), str(out)]


@pytest.mark.slow
def test_two_processes_make_one_checkpoint_and_resume_it_after_a_kill(tiny, out, tmp_path):
    path = tiny(updates=60, validate_every=25, checkpoint_every=5)
    result = subprocess.run(torchrun(path, out), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert {p.name for p in out.iterdir()} == FILES
    assert result.stderr.count("update 60,") == 1  # one process speaks
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        torchrun(path, killed), env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for((killed / "training.safetensors").exists, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert progress(killed)["update"] < 60
    result = subprocess.run(torchrun(path, killed), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert digest(killed) == digest(out)


# ---- kills


def progress(out: Path) -> dict[str, int]:
    from safetensors import safe_open

    with safe_open(out / "training.safetensors", "pt") as file:
        return json.loads(file.metadata()["progress"])


def test_a_run_killed_again_and_again_ends_in_the_same_weights(tiny, out, tmp_path):
    """Real processes, real SIGKILLs: while the text is written, after the first state, and somewhere later."""
    path = tiny(updates=300, validate_every=30, checkpoint_every=10)
    train(path, out)
    killed = tmp_path / "killed"
    random = np.random.default_rng(7)
    moments = [
        ((killed / "text").exists, 0.0),
        ((killed / "training.safetensors").exists, 0.0),
        (lambda: progress(killed)["update"] > reached, random.uniform(0, 0.3)),
    ]
    reached = 0
    for moment, delay in moments:
        process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(path), str(killed)], env=ENVIRONMENT, stderr=subprocess.DEVNULL
        )
        try:
            wait_for(moment, process)
            time.sleep(delay)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == -signal.SIGKILL
        if (killed / "training.safetensors").exists():
            assert progress(killed)["update"] > reached
            reached = progress(killed)["update"]
    assert 0 < reached < 300
    result = subprocess.run(
        [sys.executable, "-c", TRAIN, str(path), str(killed)], env=ENVIRONMENT, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert digest(killed) == digest(out)
    assert {p.name for p in killed.iterdir()} == FILES


AT_EVERY_WRITE = """
import hashlib, os, shutil, signal, sys
from pathlib import Path
from edge_attn.training.loop import train
config, folder = Path(sys.argv[1]), Path(sys.argv[2])
replace = Path.replace
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

def run(out, left=None, torn=False):
    # A child that kills itself at its write number `left`: the new file half there, or just put in place.
    def counted(temporary, path):
        nonlocal left
        if left == 0 and torn:
            os.truncate(temporary, os.stat(temporary).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(temporary, path)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if left is not None:
            left -= 1
    child = os.fork()
    if child == 0:
        Path.replace = counted
        train(config, out, threads=1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def digests(out):
    return {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*.*")}

train(config, folder / "whole", threads=1)  # here, so that the children find everything imported
expected = digests(folder / "whole")
for torn in (True, False):
    writes = 0
    while True:
        out = folder / f"killed-{torn}-{writes}"
        code = run(out, writes, torn)
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        left = sorted(p.name for p in out.rglob("*"))
        assert run(out) == 0, (torn, writes, left)
        assert digests(out) == expected, (torn, writes, left)
        writes += 1
    print(writes)
"""


def test_a_kill_at_any_write_changes_nothing(tiny, tmp_path):
    """Text, configuration, samples, models and states: each is once half written and once the last thing written."""
    path = tiny(updates=6, validate_every=3, checkpoint_every=3)
    result = subprocess.run(
        [sys.executable, "-c", AT_EVERY_WRITE, str(path), str(tmp_path)],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    torn, done = map(int, result.stdout.split())
    assert torn == done >= 3 + 1 + 1 + 1 + 2  # text, configuration, samples, at least one best model, states


def test_a_write_that_fails_is_one_sentence_and_the_run_resumes(tiny, out, tmp_path, monkeypatch):
    train(tiny(), tmp_path / "whole")
    replace, left = Path.replace, 7

    def fails(self, target):
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        train(tiny(), out)
    assert not list(out.rglob("*.partial"))
    monkeypatch.undo()
    train(tiny(), out)
    assert digest(out) == digest(tmp_path / "whole")


# ---- what is wrong


def test_another_configuration_is_refused(tiny, out):
    train(tiny(), out)
    before = digest(out)
    with pytest.raises(CheckpointError, match="out holds a run of another configuration; choose another --out"):
        train(tiny("seed = 2\n"), out)
    assert digest(out) == before


def test_a_run_may_be_given_more_updates_but_not_fewer(tiny, out):
    train(tiny(updates=6), out)
    before = digest(out)
    with pytest.raises(CheckpointError, match=r"only training.updates may grow"):
        train(tiny(updates=4), out)
    assert digest(out) == before
    train(tiny(updates=20), out)
    assert digest(out) != before
    assert checkpoint.load_config(out).training.updates == 20


def test_a_folder_of_something_else_is_refused_and_kept(tiny, out):
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="out exists and is not a checkpoint"):
        train(tiny(), out)
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


def test_an_output_that_cannot_be_written_is_refused(tiny, tmp_path):
    with pytest.raises(InputError, match=r"train\.tsv exists and is not a checkpoint"):
        train(tiny(), tmp_path / "train.tsv")
    with pytest.raises(InputError, match=r"train\.tsv/out cannot be written: Not a directory"):
        train(tiny(), tmp_path / "train.tsv" / "out")


def test_bad_data_is_refused_before_anything_is_written(tiny, out, tmp_path):
    (tmp_path / "valid.tsv").write_text("a\tb\nc\n")
    with pytest.raises(InputError, match=r"valid\.tsv, line 2"):
        train(tiny(), out)
    path = tiny()
    path.write_text(path.read_text().replace('valid = "valid.tsv"', "holdout = 200"))
    with pytest.raises(InputError, match=r"train\.tsv has 200 pairs, data\.holdout asks for 200"):
        train(path, out)
    assert not out.exists()


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_at_least_one(tiny, out, threads):
    with pytest.raises(UsageError, match=f"threads must be at least 1, found {threads}"):
        train(tiny(), out, threads=threads)


def test_a_gradient_that_is_no_number_stops_the_run(tiny, out):
    run, pairs = a_run(tiny(), out)
    with torch.no_grad():
        run.model.output.weight[4, 0] = math.nan
    before = [p.clone() for p in run.model.parameters()]
    with pytest.raises(InputError, match=r"the gradient is nan at update 0; lower training.learning_rate"):
        run.update(pairs.batch(np.arange(4)))
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(before, run.model.parameters(), strict=True))
    with pytest.raises(InputError, match=r"the validation loss is nan at update 0; lower training.learning_rate"):
        run.validate(pairs)


def test_too_few_batches_for_the_processes(tiny, out):
    run, pairs = a_run(tiny(), out, world=99)
    with pytest.raises(InputError, match="too few for 99 processes"):
        run.go(dataclasses.replace(pairs, source=pairs.source[:9], target=pairs.target[:9]), pairs)


def test_an_option_that_the_kind_cannot_take_writes_nothing(tmp_path):
    """So that the corrected configuration may be trained into the same checkpoint."""
    (tmp_path / "data.tsv").write_text("".join(f"a{i} b{i}\tc{i}\n" for i in range(20)))
    config = tmp_path / "run.toml"
    config.write_text("[data]\ntrain = 'data.tsv'\nholdout = 2\n[model]\nattention = 'multi-head'\nheads = 5\n")
    with pytest.raises(ConfigError, match=r"run\.toml: model: heads must divide attention_size"):
        train(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
