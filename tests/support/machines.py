"""Recorded machines (tests/data/machines), as they are or with some of their answers changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from paths import DATA

from edge_attn.runtimes.doctor.check import Check
from edge_attn.runtimes.doctor.doctor import Report
from edge_attn.runtimes.doctor.machine import Machine, Usage

MACHINES = DATA / "machines"
NAMES = sorted(path.stem for path in MACHINES.glob("*.json"))
KINDS = ("files", "commands", "probes", "usage")

PIP = "/home/user/.venv/bin/python -m pip"
REBOOT = "sudo reboot"
LEND = "sudo docker run --rm -it --runtime nvidia -e NVIDIA_VISIBLE_DEVICES=all --entrypoint edge-attn IMAGE doctor"


def answers(name: str) -> dict[str, Any]:
    """What the file holds; what it says is taken over what the machine that it is `like` says."""
    own: dict[str, Any] = json.loads((MACHINES / f"{name}.json").read_text(encoding="utf-8"))
    base = answers(own["like"]) if "like" in own else {}
    merged = {kind: {**base.get(kind, {}), **own.get(kind, {})} for kind in KINDS}
    return {**merged, "paths": own.get("paths", base.get("paths", []))}


def recorded(name: str, **changes: Any) -> Machine:
    """`files`, `commands`, `probes` and `usage` are put over the machine's own; `paths` replace its own."""
    found = answers(name)
    for kind, change in changes.items():
        found[kind] = {**found[kind], **change} if isinstance(change, Mapping) else change

    def glob(pattern: str) -> list[str]:
        return [path for path in found["paths"] if PurePosixPath(path).match(pattern)]

    def run(*command: str) -> tuple[int, str]:
        code, *lines = found["commands"][command[0]]
        return code, "\n".join(lines)

    return Machine(
        lambda path: "\n".join(found["files"].get(path, [])),
        glob,
        run,
        found["probes"].__getitem__,
        lambda: Usage(**found["usage"]),
    )


def python(name: str, *packages: list[str], **changes: Any) -> dict[str, Any]:
    """What the machine's Python is, with these packages too, and changed."""
    found = answers(name)["probes"]["python"]
    return {**found, "packages": [*found["packages"], *packages], **changes}


def checks(report: Report) -> dict[str, Check]:
    return {check.name: check for check in report.checks}
