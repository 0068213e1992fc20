"""The failures that fuzzing has revealed stay mended, and the fuzzing itself notices what it must."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from random import Random

import pytest

for package in ("torch", "onnx", "h5py", "sentencepiece"):
    pytest.importorskip(package, reason=f"{package} is not installed: a device needs none")

from fuzz import __main__ as fuzz
from fuzz import processes
from fuzz.campaigns import CAMPAIGNS
from fuzz.corpus import FAILURES
from fuzz.processes import Ended

SLOW = {name for name in FAILURES if FAILURES[name].slow}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAILURES])
def test_former_failure_is_refused_in_one_line(name, tmp_path, edge_attn_cli):
    failure = FAILURES[name]
    started = time.process_time()
    result = edge_attn_cli(*failure.make(tmp_path), code=failure.code, error=failure.error)
    assert len(result.stderr.rstrip("\n")) <= 300
    assert time.process_time() - started < 20
    if "train.tsv" in {file.name for file in tmp_path.iterdir()}:
        assert not (tmp_path / "run").exists()


def files(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_case_is_a_function_of_its_name(name, tmp_path):
    written = []
    for folder in (tmp_path / "1", tmp_path / "2"):
        cases = []
        for number in range(4):
            (folder / str(number)).mkdir(parents=True)
            arguments = CAMPAIGNS[name].make(Random(f"{name}/1/{number}"), folder / str(number))
            cases.append([argument.replace(str(folder), "") for argument in arguments])
        written.append((cases, files(folder)))
    assert written[0] == written[1]
    assert len(set(written[0][1].values())) > 1


def test_rounds_contain_every_campaign():
    names = [case for case, _ in zip(fuzz.cases(7, list(CAMPAIGNS)), range(40), strict=False)]
    assert {name.split("/")[0] for name in names} == set(CAMPAIGNS)
    assert len(set(names)) == len(names)
    assert names[0] == "manifest/7/0"


def run_in_a_process(folder: Path, run) -> Ended:
    for name in ("in", processes.OUTSIDE):
        (folder / name).mkdir()
    (folder / processes.OUTSIDE / "secret.txt").write_text("secret")
    child = processes.start(folder, run)
    started = time.monotonic()
    while (ended := processes.wait(child, folder, started)) is None:
        time.sleep(0.01)
    return ended


def crash() -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def hang() -> int:
    while True:
        pass


def read_outside() -> int:
    Path("../outside/secret.txt").read_text()
    return 0


def write_elsewhere() -> int:
    with open(os.path.join(os.path.dirname(__file__), "none", "new"), "w"):  # noqa: PTH118, PTH120, PTH123
        return 0


def print_lines(*lines: str):
    def run() -> int:
        os.write(2, "".join(f"{line}\n" for line in lines).encode())
        return 4

    return run


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        (lambda: 0, None),
        (print_lines("edge-attn: bad"), None),
        (lambda: 70, "exit code 70"),
        (lambda: 1 // 0, "exit code 70"),
        (crash, "was ended by the signal SIGSEGV"),
        (hang, "did not end within 1 seconds of processor time"),
        (read_outside, "fuzz: opened "),
        (write_elsewhere, "fuzz: opened "),
        (lambda: os.system("true"), "fuzz: os.system"),
        (print_lines(), "exit code 4 with 0 error lines"),
        (print_lines("edge-attn: a", "edge-attn: b"), "exit code 4 with 2 error lines"),
        (print_lines("edge-attn: " + "x" * 300), "an error line of 311 characters"),
        (print_lines("edge-attn: \x1b[31m"), "characters that cannot be printed"),
        (print_lines("Traceback (most recent call last):", "edge-attn: a"), "a traceback"),
    ],
)
def test_fault_of_a_process_is_noticed(run, fault, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "CPU_SECONDS", 1)
    actual = run_in_a_process(tmp_path, run).fault()
    assert actual is None if fault is None else fault in (actual or "")


def test_memory_of_a_case_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "MEMORY", 1 << 28)

    def allocate() -> int:
        try:
            bytearray(1 << 29)
        except MemoryError:
            return 4
        return 0

    assert run_in_a_process(tmp_path, allocate).status == 4


def test_fault_is_printed_with_the_command_that_repeats_it(capsys):
    ended = Ended(70, "a reason\n", 0.1)
    assert fuzz.report("graphs/1/42", ["verify", "a b"], ended) == 1
    assert capsys.readouterr().out == (
        "FAULT graphs/1/42: exit code 70\n  edge-attn verify 'a b'\n    a reason\n"
        "  again: .ci/fuzz --case graphs/1/42\n"
    )
    assert fuzz.report("graphs/1/42", ["verify"], Ended(0, "", 0.1)) == 0
