"""Recorded machines (tests/data/machines), as recorded or with changed answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from paths import DATA

from edge_attn.runtimes.doctor.check import Check, Report
from edge_attn.runtimes.doctor.machine import Machine

MACHINES = DATA / "machines"
NAMES = sorted(path.stem for path in MACHINES.glob("*.json"))
KINDS = ("files", "commands", "probes")

PIP = "/home/user/.venv/bin/python -m pip"
REBOOT = "sudo reboot"
DOCKER = "sudo docker run --rm -it --runtime nvidia -e NVIDIA_VISIBLE_DEVICES=all --entrypoint edge-attn IMAGE doctor"


def answers(name: str) -> dict[str, Any]:
    """Return the answers of a file, over those of the machine that it is `like`."""
    own: dict[str, Any] = json.loads((MACHINES / f"{name}.json").read_text(encoding="utf-8"))
    base = answers(own["like"]) if "like" in own else {}
    merged = {kind: {**base.get(kind, {}), **own.get(kind, {})} for kind in KINDS}
    return {**merged, "paths": own.get("paths", base.get("paths", []))}


def recorded(name: str, **changes: Any) -> Machine:
    """Return a recorded machine. `files`, `commands` and `probes` update its own; `paths` replace its own."""
    content = answers(name)
    for kind, change in changes.items():
        content[kind] = {**content[kind], **change} if isinstance(change, Mapping) else change

    def glob(pattern: str) -> list[str]:
        return [path for path in content["paths"] if PurePosixPath(path).match(pattern)]

    def run(*command: str) -> tuple[int, str]:
        code, *lines = content["commands"][command[0]]
        return code, "\n".join(lines)

    return Machine(
        lambda path: "\n".join(content["files"].get(path, [])),
        glob,
        run,
        content["probes"].__getitem__,
    )


def python(name: str, *packages: list[str], **changes: Any) -> dict[str, Any]:
    """Return the machine's Python probe with these packages added and these values changed."""
    result = answers(name)["probes"]["python"]
    return {**result, "packages": [*result["packages"], *packages], **changes}


def checks(report: Report) -> dict[str, Check]:
    return {check.name: check for check in report.checks}
