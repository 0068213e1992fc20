"""One thing that `doctor` looked at."""

from __future__ import annotations

from dataclasses import dataclass

STATUSES = ("ok", "note", "fault")
"""A note is worth knowing and stops nothing; a fault has a command."""


@dataclass(frozen=True)
class Check:
    """What was found, what it means, and the next command."""

    name: str
    status: str
    found: str
    advice: str = ""
    command: str = ""
    """To be typed as it stands; every fault has one."""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {self.status!r}")
        if self.status == "fault" and not self.command:
            raise ValueError(f"the fault of {self.name!r} has no command: {self.found}")

    def __str__(self) -> str:
        lines = [f"{self.status:<6}{self.name:<13}{' '.join(self.found.split())}"]
        if self.advice:
            lines.append(f"{'':<19}{self.advice}")
        if self.command:
            lines.append(f"{'':<19}run: {self.command}")
        return "\n".join(lines)
