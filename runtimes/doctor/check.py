"""`edge-attn doctor`: the state of this machine, and for each fault the command that repairs it.

Exit code 0: no fault; 3: a fault, so something that this machine should run cannot be tested.
A check that fails itself is a fault too, never a pass.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from edge_attn import __version__
from edge_attn.runtimes.doctor.facts import Facts
from edge_attn.runtimes.doctor.findings import FINDINGS
from edge_attn.runtimes.doctor.machine import Machine, here
from edge_attn.runtimes.doctor.repairs import FAULT, OK, REPAIRS


@dataclass(frozen=True)
class Check:
    """State of one part of the machine, and the next command."""

    name: str
    status: str
    """ok, note or fault. A note needs no repair."""
    finding: str
    advice: str = ""
    command: str = ""
    """Complete command to type. Every fault has one."""

    def __str__(self) -> str:
        lines = [f"{self.status:<6}{self.name:<13}{' '.join(self.finding.split())}"]
        if self.advice:
            lines.append(f"{'':<19}{self.advice}")
        if self.command:
            lines.append(f"{'':<19}run: {self.command}")
        return "\n".join(lines)

    def content(self) -> dict[str, str]:
        """Return the check under the keys of `doctor --json`."""
        content = dataclasses.asdict(self)
        return {"found": content.pop("finding"), **content}  # codespell:ignore found


@dataclass(frozen=True)
class Report:
    """Results of all checks."""

    checks: list[Check]

    @property
    def faults(self) -> list[Check]:
        return [check for check in self.checks if check.status == FAULT]

    @property
    def exit_code(self) -> int:
        return 3 if self.faults else 0

    def json(self) -> str:
        """Return the report as JSON."""
        content = {
            "edge_attn": __version__,
            "verdict": FAULT if self.faults else OK,
            "checks": [check.content() for check in self.checks],
        }
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        count = len(self.faults)
        verdict = f"{count} fault{'s' * (count > 1)}: repair the first, then run doctor again" if count else "no fault"
        return "\n".join([*map(str, self.checks), verdict])


def doctor(machine: Machine | None = None) -> Report:
    """Examine this machine, or a recorded one. Nothing is raised, whatever is missing or broken there."""
    facts = Facts(machine or here())
    return Report([check(name, facts) for name in FINDINGS])


def check(name: str, facts: Facts) -> Check:
    """Return the state of one part and, from the repair table, its status and the next command."""
    try:
        finding = FINDINGS[name](facts)
        for status, condition, sentence, command in REPAIRS[name]:
            if condition(facts):
                return Check(name, status, finding, sentence.format(m=facts), command.format(m=facts))
        return Check(name, OK, finding)
    except Exception as error:  # doctor must work on a machine where nothing else does
        finding = f"this check failed: {type(error).__name__}: {error}"
        return Check(
            name, FAULT, finding, "please report it, with the output of this command", "edge-attn doctor --json"
        )
