"""Run every GPU test and benchmark with one command, and write the results to a folder.

    python tests/gpu/run.py FOLDER [TSV] [--only STEP ...] [--minutes 30] [--cache-dir ENGINES]

This needs the checkout and the requirements of the package, but no network and no installed edge-attn. A step or
contender whose library is missing reports this: pytest, onnx, torch, TensorRT or TensorRT-RTX, ONNX Runtime with CUDA.
TSV contains pairs whose sources the benchmark translates; by default it translates the golden sentences of the bundle.
The model is the embedded one, or that of --bundle and --checkpoint.

    doctor.json                    `edge-attn doctor --json`
    machine.json                   recording of the machine for the tests of doctor (tests/data/machines)
    tests.xml, tests.txt           every test marked gpu: parity of each runtime by verify, CUDA, our kernel
    benchmark.json, benchmark.txt  tests/tools/bench_gpu.py
    summary.json                   date, GPU and versions; command, exit code, seconds and last lines of each step

A step runs even if another fails. Exit code 0: every step succeeded; 1: a step failed; 3: there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
EMBEDDED = PROJECT / "edge_attn" / "pretrained" / "en-fr"
MARK = "pytest.mark.gpu"
TIMED_OUT = 124
"""Exit code of a step that exceeds its time limit, as with `timeout`."""
LAST_LINES = 20
"""Lines of output that the summary contains for a failed step."""
CONTENDERS = ("torch eager", "torch.compile", "torch CUDA graph", "ort-cuda", "trt-rtx", "trt")
"""Contenders of the benchmark; a name precedes its own prefixes."""


@dataclass(frozen=True)
class Step:
    """A command. Its file contains its standard output, and standard error too if it is a text file."""

    name: str
    file: str
    command: tuple[str, ...]
    good: tuple[int, ...] = (0,)
    """Exit codes of success."""
    on_gpu: bool = False
    """True if some of the tests must run, because there is a GPU."""


def steps(options: argparse.Namespace, gpu: bool) -> list[Step]:
    """Return the steps; `gpu` is True if there is a GPU."""
    folder, python = options.folder, sys.executable
    marked = sorted(str(path) for path in (PROJECT / "tests").rglob("test_*.py") if MARK in path.read_text("utf-8"))
    pytest = (python, "-m", "pytest", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", *marked)
    benchmark = [python, str(PROJECT / "tests" / "tools" / "bench_gpu.py"), options.checkpoint, options.bundle]
    benchmark += [options.corpus] * (options.corpus is not None) + ["--json", folder / "benchmark.json"]
    benchmark += ["--cache-dir", options.cache_dir] * (options.cache_dir is not None)
    return [
        Step("doctor", "doctor.json", (python, "-m", "edge_attn.cli", "doctor", "--json"), (0, 3)),
        Step("machine", "machine.json", (python, str(PROJECT / "tests" / "data" / "machines" / "record.py"))),
        Step("tests", "tests.txt", (*pytest, f"--junitxml={folder / 'tests.xml'}"), on_gpu=gpu),
        Step("benchmark", "benchmark.txt", tuple(map(str, benchmark)), (0,) if gpu else (3,), gpu),
    ]


def run_step(step: Step, folder: Path, minutes: float) -> dict[str, Any]:
    """Run a step with a time limit in minutes; return its entry of the summary."""
    for stale in folder.glob(f"{step.name}.*"):
        stale.unlink()
    path, errors = folder / step.file, folder / f"{step.name}.errors"
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = time.monotonic()
    with path.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(
            step.command,
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err if path.suffix == ".json" else subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            code = TIMED_OUT
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with its child processes
                process.wait()
    output = (path if path.suffix == ".txt" else errors).read_text("utf-8", errors="replace").splitlines()
    errors.unlink()
    return {
        "command": shown(step.command),
        "exit code": code,
        "succeeded": code in step.good,
        "seconds": round(time.monotonic() - started, 1),
        "last lines": [] if code == 0 else output[-LAST_LINES:],
    }


def shown(command: Sequence[str]) -> str:
    """Return the command as a user types it in the checkout."""
    return shlex.join(("python", *command[1:])).replace(f"{PROJECT}{os.sep}", "")


def run_benchmark(step: Step, folder: Path, minutes: float) -> dict[str, Any]:
    """Run the benchmark, and repeat it without each contender that crashes the process."""
    skipped: dict[str, list[str]] = {}
    while True:
        command = (*step.command, *(word for name in skipped for word in ("--skip", name)))
        result = run_step(replace(step, command=command), folder, minutes)
        last = (
            last_contender((folder / step.file).read_text("utf-8", errors="replace"))
            if result["exit code"] < 0
            else None
        )
        if last is None or last in skipped:
            return {**result, "succeeded": result["succeeded"] and not skipped, "crashed": skipped}
        skipped[last] = result["last lines"]


def last_contender(log: str) -> str | None:
    """Return the contender that the benchmark started last, or None."""
    named = [line[4:] for line in log.splitlines() if line.startswith("... ")]
    return next((name for name in CONTENDERS if named and named[-1].startswith(name)), None)


def run_tests(step: Step, folder: Path, minutes: float) -> dict[str, Any]:
    """Run the tests, and count passed, failed and skipped ones, by reason. On a GPU at least one must pass."""
    result, report = run_step(step, folder, minutes), folder / "tests.xml"
    cases = ElementTree.parse(report).findall(".//testcase") if report.is_file() else []
    reasons = Counter(skip.get("message", "") for case in cases for skip in case.findall("skipped"))
    failed = sum(any(child.tag in ("failure", "error") for child in case) for case in cases)
    passed = len(cases) - failed - reasons.total()
    succeeded = result["succeeded"] and (passed > 0 or not step.on_gpu)
    return {**result, "succeeded": succeeded, "passed": passed, "failed": failed, "skipped": reasons}


RUN: dict[str, Callable[[Step, Path, float], dict[str, Any]]] = {"tests": run_tests, "benchmark": run_benchmark}
"""Functions of the steps that are more than a command."""


def main() -> int:
    options = arguments()
    sys.path[:0] = [str(PROJECT), str(PROJECT / "tests" / "tools")]
    from gpu_machine import machine

    options.folder.mkdir(parents=True, exist_ok=True)
    here = machine()
    summary: dict[str, Any] = {**here, "steps": {}}
    for step in steps(options, here["gpu"] is not None):
        if options.only and step.name not in options.only:
            continue
        result = RUN.get(step.name, run_step)(step, options.folder, options.minutes)
        summary["steps"][step.name] = result
        print(
            f"{step.name}: exit code {result['exit code']} after {result['seconds']} s",
            *result["last lines"],
            sep="\n  ",
        )
        (options.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if here["gpu"] is None:
        print("there is no NVIDIA GPU: nothing was tested on one", file=sys.stderr)
        return 3
    return int(not all(result["succeeded"] for result in summary["steps"].values()))


def arguments() -> argparse.Namespace:
    def path(text: str) -> Path:
        return Path(text).resolve()

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=path)
    parser.add_argument("corpus", type=path, nargs="?", metavar="TSV")
    parser.add_argument("--bundle", type=path, default=EMBEDDED.with_suffix(".zip"))
    parser.add_argument("--checkpoint", type=path, default=EMBEDDED)
    parser.add_argument("--only", action="append", choices=["doctor", "machine", "tests", "benchmark"])
    parser.add_argument("--minutes", type=float, default=30.0, help="Time limit per step.")
    parser.add_argument("--cache-dir", type=path, help="Engine cache folder; by default a temporary one.")
    options = parser.parse_args()
    if options.folder.exists() and not options.folder.is_dir():
        parser.error(f"FOLDER must be a folder, got the file {options.folder}")
    for path_ in (options.corpus, options.bundle, options.checkpoint):
        if path_ is not None and not path_.exists():
            parser.error(f"there is no {path_}")
    return options


if __name__ == "__main__":
    sys.exit(main())
