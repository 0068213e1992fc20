"""Run the campaigns for some time, or one case again.

.ci/fuzz                      5 minutes
.ci/fuzz 3600 --seed 7        an hour with other cases
.ci/fuzz --case graphs/1/42   the case 42 of the campaign `graphs` with seed 1, with its output
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from fuzz import inputs, processes
from fuzz.campaigns import CAMPAIGNS
from fuzz.processes import OUTSIDE, Ended

WORKERS = 2
SETTINGS = {f"EDGE_ATTN_{verb}_MAX_RUN_SECONDS": "2" for verb in ("VERIFY", "TRANSLATE", "SCORE", "ALIGN", "EVALUATE")}
"""Cases with an endless loop end early."""


def main() -> int:
    parser = argparse.ArgumentParser(prog=".ci/fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("seconds", nargs="?", type=float, default=300, help="time of all campaigns together")
    parser.add_argument("--cases", type=int, help="stop after so many cases, on a fast machine too")
    parser.add_argument("--seed", type=int, default=1, help="other seeds make other cases")
    parser.add_argument("--campaign", action="append", choices=CAMPAIGNS, help="only this campaign; repeatable")
    parser.add_argument("--case", metavar="CAMPAIGN/SEED/NUMBER", help="run this case again, and keep its files")
    options = parser.parse_args()
    os.environ.update(SETTINGS)
    _import_everything()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
        if options.case:
            return repeat(options.case, Path(tempfile.mkdtemp(prefix="fuzz-case-")))
        return fuzz(options.seconds, options.seed, options.campaign or list(CAMPAIGNS), Path(work), options.cases)


def _import_everything() -> None:
    """Import once what the cases need, because each of them is a fork of this process."""
    import h5py  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch

    import edge_attn.checkpoint
    import edge_attn.importers.keras
    import edge_attn.runtimes.commands.translate
    import edge_attn.runtimes.verification.verify
    import edge_attn.training.trainer  # noqa: F401

    torch.set_num_threads(1)
    inputs.sentencepiece_model()
    inputs.keras_parts()


def cases(seed: int, names: list[str]) -> Iterator[str]:
    """Yield the names of cases without end, a round of all campaigns after another."""
    numbers = Counter[str]()
    while True:
        for name in names:
            for _ in range(CAMPAIGNS[name].weight):
                yield f"{name}/{seed}/{numbers[name]}"
                numbers[name] += 1


def start(case: str, folder: Path) -> tuple[int, list[str]]:
    """Write the files of a case and start its command. Return the process and the command line."""
    for name in ("in", OUTSIDE):
        (folder / name).mkdir(parents=True)
    (folder / OUTSIDE / "secret.txt").write_text("secret\n")
    arguments = CAMPAIGNS[case.partition("/")[0]].make(Random(case), folder / "in")
    return processes.start(folder, lambda: _run(arguments)), arguments


def _run(arguments: list[str]) -> int:
    """Run a command line in this process and return its exit code."""
    from edge_attn import cli, errors
    from edge_attn.importers.keras import load_keras

    if arguments[0] == "load_keras":
        try:
            load_keras(arguments[1], arguments[2] or None)
        except errors.EdgeAttnError as error:
            os.write(2, f"edge-attn: {errors.one_line(error)}\n".encode())
            return error.exit_code
        return 0
    sys.argv = ["edge-attn", *arguments]
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, "r" if i == 0 else "w", closefd=False) for i in range(3))
    try:
        cli.main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0
    return 0


def fuzz(seconds: float, seed: int, names: list[str], work: Path, limit: int | None = None) -> int:
    """Run cases for `seconds`, at most `limit`, print each fault with its command, and return the exit code."""
    began, running = time.monotonic(), dict[int, tuple[str, Path, list[str], float]]()
    codes, faults, slowest = Counter[str](), 0, (0.0, "")
    last = ""  # after the last case the running ones end
    for number, case in enumerate(itertools.chain(itertools.islice(cases(seed, names), limit), [last])):
        while len(running) == WORKERS or (running and (not case or time.monotonic() - began >= seconds)):
            for child, (name, folder, arguments, started) in list(running.items()):
                if (ended := processes.wait(child, folder, started)) is None:
                    continue
                del running[child]
                codes[str(ended.status)] += 1
                slowest = max(slowest, (ended.seconds, name))
                faults += report(name, arguments, ended)
                shutil.rmtree(folder)
            time.sleep(0.005)
        if not case or time.monotonic() - began >= seconds:
            break
        folder = work / str(number)
        child, arguments = start(case, folder)
        running[child] = (case, folder, arguments, time.monotonic())
    total = ", ".join(f"{count} exit {code}" for code, count in sorted(codes.items()))
    print(f"{codes.total()} cases in {time.monotonic() - began:.0f} s: {total}")
    print(f"{faults} faults; the slowest case took {slowest[0]:.1f} s ({slowest[1]})")
    return 1 if faults else 0


def report(case: str, arguments: list[str], ended: Ended) -> int:
    """Print a fault, and return their number."""
    fault = ended.fault()
    if fault is None:
        return 0
    last = ended.errors.strip().splitlines()[-12:]
    lines = [
        f"FAULT {case}: {fault}",
        f"  edge-attn {shlex.join(arguments)[:200]}",
        *(f"    {line[:240]}" for line in last),
    ]
    print("\n".join([*lines, f"  again: .ci/fuzz --case {case}"]), flush=True)
    return 1


def repeat(case: str, folder: Path) -> int:
    """Run one case again, print its output, and return the exit code."""
    child, arguments = start(case, folder)
    print(f"edge-attn {shlex.join(arguments)}", flush=True)
    started = time.monotonic()
    for _ in itertools.count():
        if ended := processes.wait(child, folder, started):
            break
        time.sleep(0.01)
    print((folder / "stdout").read_text(errors="replace")[-2000:], ended.errors, f"exit {ended.status}", sep="\n")
    return report(case, arguments, ended)


if __name__ == "__main__":
    sys.exit(main())
