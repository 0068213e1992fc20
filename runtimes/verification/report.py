"""Report of a verification, and what takes its place when nothing could be verified."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_attn import __version__
from edge_attn.parity.results import LevelResult, Measurement, TokenMismatch
from edge_attn.runtimes.verification import plain_text
from edge_attn.runtimes.verification.diagnosis import cause, next_command

SCHEMA = 2
"""Number of schema.json, which describes the JSON. Reports of edge-attn 0.1.0 have no number."""


def now() -> str:
    """Return the time in UTC, in ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Report:
    """Result of one verification."""

    bundle: str
    runtime: str
    provider: str
    precision: str
    against: str
    sentences: int
    overrides: dict[str, float]
    levels: list[LevelResult]
    """The levels that the task has or that were requested."""
    seconds: float = 0.0
    time: str = field(default_factory=now)
    """End of the verification."""
    coverage: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """How many entries of each vocabulary the golden data uses, and how many there are."""
    inputs: Sequence[str] = ()
    """The compared inputs, which mismatches and measurements name by their index."""

    @property
    def verdict(self) -> str:
        """Return holds, fails or not tested; a level that could not run is never a pass."""
        statuses = {level.status for level in self.levels}
        if "fails" in statuses:
            return "fails"
        return "not tested" if "not tested" in statuses or "holds" not in statuses else "holds"

    @property
    def exit_code(self) -> int:
        """Return 0 if parity holds, 1 if it fails, 3 if it was not tested."""
        return {"holds": 0, "fails": 1, "not tested": 3}[self.verdict]

    @property
    def cause(self) -> str:
        """Return a sentence on what holds and where the first difference is, or why nothing was tested; else empty."""
        return cause(self.levels, self.inputs)

    @property
    def next(self) -> str:
        """Return the command that narrows a difference down; empty if there is none."""
        return next_command(self.bundle, self.runtime, self.precision, self.against) if self.verdict == "fails" else ""

    def level(self, name: str) -> LevelResult:
        """Return the result of one of the levels that the task has or that were requested."""
        return next(level for level in self.levels if level.name == name)

    def content(self) -> dict[str, Any]:
        """Return the report as JSON values, as schema.json describes them. NaN and infinity are strings."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "inputs"}
        content = {
            **fields,
            "schema": SCHEMA,
            "edge_attn": __version__,
            "verdict": self.verdict,
            "cause": self.cause,
            "next": self.next,
            "levels": [_level_content(level) for level in self.levels],
        }
        json_values: dict[str, Any] = _json_values(content)
        return json_values

    def json(self) -> str:
        """Return the report as JSON text."""
        return json_text(self.content())

    def __str__(self) -> str:
        return plain_text.short(self)

    def details(self) -> str:
        """Return the report as text with every bound and every mismatch."""
        return plain_text.details(self)

    def summary(self) -> dict[str, Any]:
        """Return the part of the report that a manifest contains."""
        levels = {level.name: level.status for level in self.levels if level.status != "not requested"}
        summary = {"runtime": self.runtime, "provider": self.provider, "sentences": self.sentences, "levels": levels}
        return {**summary, "overrides": self.overrides} if self.overrides else summary


@dataclass(frozen=True)
class FailedRun:
    """A verification that ended with an error before it had a verdict."""

    bundle: str
    runtime: str
    precision: str
    reason: str
    exit_code: int
    seconds: float = 0.0
    time: str = field(default_factory=now)

    @classmethod
    def of(cls, error: Exception, bundle: Path, runtime: str, precision: str, seconds: float) -> FailedRun:
        """Return the report of an error, whose class is named where it is a fault of edge-attn.

        Args:
            error: the error that ended the verification.
            bundle: bundle to verify.
            runtime: name of the runtime.
            precision: requested precision.
            seconds: duration up to the error.
        """
        code = getattr(error, "exit_code", 70)
        reason = f"{error}" if code != 70 else f"a fault of edge-attn: {type(error).__name__}: {error}"
        return cls(str(bundle), runtime, precision, reason, code, seconds)

    @property
    def verdict(self) -> str:
        """Return error."""
        return "error"

    def content(self) -> dict[str, Any]:
        """Return the report as JSON values, as schema.json describes them."""
        return {**dataclasses.asdict(self), "schema": SCHEMA, "edge_attn": __version__, "verdict": self.verdict}

    def json(self) -> str:
        """Return the report as JSON text."""
        return json_text(self.content())


def json_text(content: Mapping[str, Any]) -> str:
    """Return JSON with sorted keys and a final line break."""
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _level_content(level: LevelResult) -> dict[str, Any]:
    return {
        "name": level.name,
        "status": level.status,
        "reason": level.reason,
        "seconds": level.seconds,
        "findings": [_finding(measurement) for measurement in level.measurements],
        "flips": [_flip(mismatch) for mismatch in level.mismatches],
    }


def _finding(measurement: Measurement) -> dict[str, Any]:
    return {**dataclasses.asdict(measurement), "ok": measurement.ok}


def _flip(mismatch: TokenMismatch) -> dict[str, Any]:
    return {**dataclasses.asdict(mismatch), "excused": mismatch.within_noise}


def _json_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_values(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
