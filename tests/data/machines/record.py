"""Record this machine for the tests of `edge-attn doctor`: every file, command and probe that doctor reads.

    python tests/data/machines/record.py > tests/data/machines/NAME.json

The paths of home, environment and checkout become /home/user and folders in it. Check the file before you publish it. A
file from this program has "recorded": true. The others are assembled from what owners of such machines have published
(their "source"), including the results of their probes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edge_attn.runtimes.doctor.check import doctor
from edge_attn.runtimes.doctor.machine import Machine, here


def record() -> dict[str, Any]:
    machine = here()
    answers: dict[str, Any] = {"files": {}, "paths": [], "commands": {}, "probes": {}}

    def read_text(path: str) -> str:
        answers["files"][path] = machine.read_text(path)
        return machine.read_text(path)

    def glob(pattern: str) -> list[str]:
        answers["paths"] = sorted({*answers["paths"], *machine.glob(pattern)})
        return machine.glob(pattern)

    def run(*command: str) -> tuple[int, str]:
        code, output = machine.run(*command)
        answers["commands"][command[0]] = [code, *output.splitlines()]
        return code, output

    def probe(name: str) -> dict[str, Any]:
        answers["probes"][name] = machine.probe(name)
        return machine.probe(name)

    report = doctor(Machine(read_text, glob, run, probe))
    answers["files"] = {path: text.splitlines() for path, text in answers["files"].items() if text}
    return {"recorded": True, "source": [f"this program, exit code {report.exit_code}"], **answers}


REPLACEMENTS = {
    sys.prefix: "/home/user/.venv" if sys.prefix != sys.base_prefix else "/usr",
    sys.base_prefix: "/usr",
    str(Path(__file__).resolve().parents[3]): "/home/user/edge-attn",
    str(Path.home()): "/home/user",
}

if __name__ == "__main__":
    text = json.dumps(record(), indent=1, ensure_ascii=False)
    for folder, name in REPLACEMENTS.items():
        text = text.replace(folder, name)
    print(text)
