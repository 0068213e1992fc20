"""All that a machine with an NVIDIA GPU can show, in one command, as small files in a folder.

    python tests/gpu/run.py FOLDER [TSV] [--only STEP ...] [--minutes 30] [--cache-dir ENGINES]

Needs no network and no installed edge-attn: the checkout, and in the interpreter's reach what the package needs. What
else is missing costs the step or the contender that needs it, which says so: pytest, onnx, torch, TensorRT or
TensorRT-RTX, ONNX Runtime with CUDA. TSV holds pairs whose sources the benchmark translates; without it those are the
bundle's golden sentences. The model is the embedded one, or that of --bundle and --checkpoint.

    doctor.json                    `edge-attn doctor --json`
    machine.json                   the same machine as the tests of doctor can ask it again (tests/data/machines)
    tests.xml, tests.txt           every test marked gpu: parity of each runtime through verify, CUDA, our kernel
    benchmark.json, benchmark.txt  tests/tools/bench_gpu.py
    summary.json                   date, GPU and versions; of each step its command, exit code, seconds, last words

Each step goes on if another fails. Exit code 0: all of them did what they should; 1: one did not; 3: there is no GPU.
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
TOO_LONG = 124
"""Exit code, as `timeout` has it."""
LAST_WORDS = 20
"""Lines."""
CONTENDERS = ("torch eager", "torch.compile", "torch CUDA graph", "ort-cuda", "trt-rtx", "trt")
"""Of the benchmark; a name before those that it begins with."""


@dataclass(frozen=True)
class Step:
    """A command; what it says on standard output is its file, and the rest too where that is text."""

    name: str
    file: str
    command: tuple[str, ...]
    good: tuple[int, ...] = (0,)
    """Exit codes of one that did what it should."""
    on_gpu: bool = False


def steps(options: argparse.Namespace, gpu: bool) -> list[Step]:
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


def carry_out(step: Step, folder: Path, minutes: float) -> dict[str, Any]:
    """Runs it, and ends it after so many minutes; what came of it."""
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
            code = TOO_LONG
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with all that it started
                process.wait()
    said = (path if path.suffix == ".txt" else errors).read_text("utf-8", errors="replace").splitlines()
    errors.unlink()
    return {
        "command": shown(step.command),
        "exit code": code,
        "as it should": code in step.good,
        "seconds": round(time.monotonic() - started, 1),
        "last words": [] if code == 0 else said[-LAST_WORDS:],
    }


def shown(command: Sequence[str]) -> str:
    """As someone would type it in the checkout."""
    return shlex.join(("python", *command[1:])).replace(f"{PROJECT}{os.sep}", "")


def all_contenders(step: Step, folder: Path, minutes: float) -> dict[str, Any]:
    """The benchmark, again without each contender that ends its process, as a crash in a library does."""
    skipped: dict[str, list[str]] = {}
    while True:
        command = (*step.command, *(word for name in skipped for word in ("--skip", name)))
        done = carry_out(replace(step, command=command), folder, minutes)
        last = culprit((folder / step.file).read_text("utf-8", errors="replace")) if done["exit code"] < 0 else None
        if last is None or last in skipped:
            return {**done, "as it should": done["as it should"] and not skipped, "ended its process": skipped}
        skipped[last] = done["last words"]


def culprit(log: str) -> str | None:
    """The contender that the benchmark named last."""
    named = [line[4:] for line in log.splitlines() if line.startswith("... ")]
    return next((name for name in CONTENDERS if named and named[-1].startswith(name)), None)


def counted(step: Step, folder: Path, minutes: float) -> dict[str, Any]:
    """The tests, with how many passed, failed and, by their reasons, were skipped; on a GPU some must pass."""
    done, report = carry_out(step, folder, minutes), folder / "tests.xml"
    cases = ElementTree.parse(report).findall(".//testcase") if report.is_file() else []
    reasons = Counter(skip.get("message", "") for case in cases for skip in case.findall("skipped"))
    failed = sum(any(child.tag in ("failure", "error") for child in case) for case in cases)
    passed = len(cases) - failed - reasons.total()
    good = done["as it should"] and (passed > 0 or not step.on_gpu)
    return {**done, "as it should": good, "passed": passed, "failed": failed, "skipped": reasons}


RUN: dict[str, Callable[[Step, Path, float], dict[str, Any]]] = {"tests": counted, "benchmark": all_contenders}
"""How the steps run that are more than a command."""


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
        done = RUN.get(step.name, carry_out)(step, options.folder, options.minutes)
        summary["steps"][step.name] = done
        print(f"{step.name}: exit code {done['exit code']} after {done['seconds']} s", *done["last words"], sep="\n  ")
        (options.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if here["gpu"] is None:
        print("no NVIDIA GPU answers: nothing of it was tested", file=sys.stderr)
        return 3
    return int(not all(done["as it should"] for done in summary["steps"].values()))


def arguments() -> argparse.Namespace:
    def path(text: str) -> Path:
        return Path(text).resolve()

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=path)
    parser.add_argument("corpus", type=path, nargs="?", metavar="TSV")
    parser.add_argument("--bundle", type=path, default=EMBEDDED.with_suffix(".zip"))
    parser.add_argument("--checkpoint", type=path, default=EMBEDDED)
    parser.add_argument("--only", action="append", choices=["doctor", "machine", "tests", "benchmark"])
    parser.add_argument("--minutes", type=float, default=30.0, help="For one step.")
    parser.add_argument("--cache-dir", type=path, help="Where the benchmark's engines are kept; else they go with it.")
    options = parser.parse_args()
    if options.folder.exists() and not options.folder.is_dir():
        parser.error(f"FOLDER must be a folder, got the file {options.folder}")
    for given in (options.corpus, options.bundle, options.checkpoint):
        if given is not None and not given.exists():
            parser.error(f"there is no {given}")
    return options


if __name__ == "__main__":
    sys.exit(main())
