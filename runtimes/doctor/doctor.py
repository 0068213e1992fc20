"""`edge-attn doctor`: what this machine has for running bundles, what is wrong, and the command that puts it right.

Exit code 0: no fault was found; 3: there is a fault, so something that this machine should run cannot be tested.
A check that cannot be made is a fault too, never a pass.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_attn import __version__
from edge_attn.runtimes.doctor.check import Check
from edge_attn.runtimes.doctor.hardware import (
    check_board,
    check_cache,
    check_cuda,
    check_gpu,
    check_memory,
    check_system,
)
from edge_attn.runtimes.doctor.machine import Machine, here
from edge_attn.runtimes.doctor.software import (
    check_onnxruntime,
    check_providers,
    check_runtimes,
    check_tensorrt,
    check_tensorrt_rtx,
)

CHECKS: Mapping[str, Callable[[Machine], Check]] = {
    "board": check_board,
    "system": check_system,
    "gpu": check_gpu,
    "cuda": check_cuda,
    "tensorrt": check_tensorrt,
    "tensorrt-rtx": check_tensorrt_rtx,
    "onnxruntime": check_onnxruntime,
    "providers": check_providers,
    "memory": check_memory,
    "cache": check_cache,
    "runtimes": check_runtimes,
}
"""In the order in which their faults are to be put right."""


@dataclass(frozen=True)
class Report:
    """What all the checks found."""

    checks: list[Check]

    @property
    def faults(self) -> list[Check]:
        return [check for check in self.checks if check.status == "fault"]

    @property
    def exit_code(self) -> int:
        return 3 if self.faults else 0

    def content(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "edge_attn": __version__,
            "verdict": "fault" if self.faults else "ok",
            "checks": [dataclasses.asdict(check) for check in self.checks],
        }

    def json(self) -> str:
        return json.dumps(self.content(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        count = len(self.faults)
        verdict = f"{count} fault{'s' * (count > 1)}; put the first right, then ask again" if count else "no fault"
        return "\n".join([*map(str, self.checks), verdict])


def doctor(machine: Machine | None = None) -> Report:
    """Examines this machine, or a recorded one. Whatever is missing or broken there, nothing is raised."""
    machine = machine or here()
    return Report([_checked(name, check, machine) for name, check in CHECKS.items()])


def _checked(name: str, check: Callable[[Machine], Check], machine: Machine) -> Check:
    try:
        return check(machine)
    except Exception as error:  # an unread machine is what doctor is for
        found = f"this check could not be made: {type(error).__name__}: {error}"
        return Check(name, "fault", found, "please report it, with what this prints", "edge-attn doctor --json")
