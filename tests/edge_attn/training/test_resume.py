"""The weights of a run depend neither on kills nor on the number of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import PACKAGE
from tiny_runs import FILES, a_run, alone_and_shared, digest, have_the_same_weights, progress

from edge_attn.errors import InputError
from edge_attn.training.run import train

TRAIN = (
    "import sys; from pathlib import Path; from edge_attn.training.run import train\n"
    "train(Path(sys.argv[1]), Path(sys.argv[2]), threads=1)"
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent)}


# ---- processes


def test_gradients_are_summed_over_processes(tiny, out, monkeypatch):
    """A second process with the same batch changes nothing: the gradient and the tokens double."""
    alone, shared = alone_and_shared(tiny(), out, monkeypatch)
    assert have_the_same_weights(alone, shared)


def test_processes_share_the_validation(tiny, out, monkeypatch):
    single, pairs = a_run(tiny(), out)
    expected, parts = single.validate(pairs), []
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
def test_two_processes_resume_after_a_kill(tiny, out, tmp_path):
    path = tiny(updates=60, validate_every=25, checkpoint_every=5)
    result = subprocess.run(torchrun(path, out), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert {p.name for p in out.iterdir()} == FILES
    assert result.stderr.count("update 60,") == 1  # only one process prints
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


@pytest.mark.slow
def test_run_killed_three_times_has_the_same_weights(tiny, out, tmp_path):
    """Real processes get SIGKILL: while the text is written, after the first state, and at a random time."""
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
from edge_attn.training.run import train
config, folder = Path(sys.argv[1]), Path(sys.argv[2])
rename = Path.rename
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

def run(out, left=None, torn=False):
    # A child that kills itself at its write number `left`: the new file is half written, or was just renamed.
    def counted(temporary, path):
        nonlocal left
        if left == 0 and torn:
            os.truncate(temporary, os.stat(temporary).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        rename(temporary, path)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if left is not None:
            left -= 1
    child = os.fork()
    if child == 0:
        Path.rename = counted
        train(config, out, threads=1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def digests(out):
    files = [p for p in out.rglob("*.*") if p.name != "log.csv"]  # which has times
    return {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

train(config, folder / "expected", threads=1)  # also imports all modules before the forks
expected = digests(folder / "expected")
for torn in (True, False):
    writes = 0
    while True:
        out = folder / f"killed-{torn}-{writes}"
        code = run(out, writes, torn)
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        files = sorted(p.name for p in out.rglob("*"))
        assert run(out) == 0, (torn, writes, files)
        assert digests(out) == expected, (torn, writes, files)
        writes += 1
    print(writes)
"""


@pytest.mark.slow
def test_kill_at_any_write_changes_nothing(tiny, tmp_path):
    """Each file is once half written and once the last one written: text, configuration, samples, model, state."""
    path = tiny(updates=6, validate_every=3, checkpoint_every=3)
    result = subprocess.run(
        [sys.executable, "-c", AT_EVERY_WRITE, str(path), str(tmp_path)],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    torn, done = map(int, result.stdout.split())
    assert torn == done >= 3 + 1 + 1 + 1 + 2  # text, configuration, samples, at least one best model, states


def test_failed_write_is_reported_and_the_run_resumes(tiny, out, tmp_path, monkeypatch):
    train(tiny(), tmp_path / "expected")
    rename, left = Path.rename, 7

    def fails(self, target):
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        train(tiny(), out)
    assert not list(out.rglob("*.partial"))
    monkeypatch.undo()
    train(tiny(), out)
    assert digest(out) == digest(tmp_path / "expected")
