"""What verify found: as a table, as JSON (with its schema) and as JUnit XML."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edge_attn import __version__
from edge_attn.errors import InputError
from edge_attn.parity.results import LevelResult
from edge_attn.parity.tolerances import LEVELS

SHOWN = 20
"""Flips of one level that the text lists."""

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "edge-attn verify",
    "type": "object",
    "required": [
        "edge_attn",
        "bundle",
        "runtime",
        "provider",
        "precision",
        "against",
        "sentences",
        "levels",
        "verdict",
    ],
    "properties": {
        "edge_attn": {"type": "string"},
        "bundle": {"type": "string"},
        "runtime": {"type": "string"},
        "provider": {"type": "string"},
        "precision": {"type": "string"},
        "against": {"type": "string"},
        "sentences": {"type": "integer"},
        "overrides": {"type": "object", "additionalProperties": {"type": "number"}},
        "verdict": {"enum": ["holds", "fails", "not tested"]},
        "levels": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "status", "findings", "flips"],
                "properties": {
                    "name": {"enum": list(LEVELS)},
                    "status": {"enum": ["holds", "fails", "not requested", "not tested"]},
                    "reason": {"type": "string"},
                    "findings": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["level", "name", "value", "bound", "ok"],
                            "properties": {
                                "level": {"type": "string"},
                                "name": {"type": "string"},
                                "value": {"type": ["number", "string"]},
                                "bound": {"type": "number"},
                                "ok": {"type": "boolean"},
                            },
                        },
                    },
                    "flips": {"type": "array", "items": {"type": "object"}},
                },
            },
        },
    },
}


@dataclass(frozen=True)
class Report:
    """One verification."""

    bundle: str
    runtime: str
    provider: str
    precision: str
    against: str
    sentences: int
    overrides: dict[str, float]
    levels: list[LevelResult]

    @property
    def verdict(self) -> str:
        statuses = {level.status for level in self.levels}
        if "fails" in statuses:
            return "fails"
        return "not tested" if "not tested" in statuses or "holds" not in statuses else "holds"

    @property
    def exit_code(self) -> int:
        return {"holds": 0, "fails": 1, "not tested": 3}[self.verdict]

    def content(self) -> dict[str, Any]:
        """The report as plain values, as SCHEMA describes them; a number that is none (NaN, infinity) is a string."""
        levels = []
        for level in self.levels:
            content = dataclasses.asdict(level)
            for finding, original in zip(content["findings"], level.findings, strict=True):
                finding["ok"] = original.ok
            for shown, flip in zip(content["flips"], level.flips, strict=True):
                shown["excused"] = flip.within_noise
            levels.append(content)
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        made = {**own, "levels": levels, "verdict": self.verdict, "edge_attn": __version__}
        plain: dict[str, Any] = _plain(made)
        return plain

    def json(self) -> str:
        return json.dumps(self.content(), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def junit(self) -> str:
        """One test case a finding; what was not tested is an error, what was not requested is skipped."""
        suite = ElementTree.Element("testsuite", name=f"edge-attn verify {self.bundle} on {self.runtime}")
        for level in self.levels:
            if level.findings:
                for finding in level.findings:
                    case = ElementTree.SubElement(suite, "testcase", classname=level.name, name=finding.name)
                    if not finding.ok:
                        ElementTree.SubElement(case, "failure", message=str(finding)).text = "\n".join(
                            map(str, level.flips)
                        )
            else:
                case = ElementTree.SubElement(suite, "testcase", classname=level.name, name=LEVELS[level.name])
                kind = "error" if level.status == "not tested" else "skipped"
                ElementTree.SubElement(case, kind, message=f"{level.status} {level.reason}".strip())
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
        suite.set("tests", str(len(suite)))
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"

    def write_junit(self, path: Path) -> None:
        """Write the report to `path` as JUnit XML.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            path.write_text(self.junit(), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error

    def __str__(self) -> str:
        lines = [
            f"{self.bundle} on {self.runtime} ({self.provider}), {self.precision}, {self.sentences} sentences, "
            f"against {self.against}"
        ]
        for level in self.levels:
            lines.append(
                f"{level.name} {LEVELS[level.name]}: {level.status}{f' ({level.reason})' if level.reason else ''}"
            )
            lines += [f"  {finding}" for finding in level.findings]
            lines += [f"  {flip}" for flip in level.flips[:SHOWN]]
            if len(level.flips) > SHOWN:
                lines.append(f"  and {len(level.flips) - SHOWN} more flips (all of them: --json)")
        lines += [f"override: {name} = {value:g}" for name, value in self.overrides.items()]
        lines.append(f"parity {'NOT TESTED' if self.verdict == 'not tested' else self.verdict}")
        return "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        levels = {level.name: level.status for level in self.levels if level.status != "not requested"}
        return {"runtime": self.runtime, "provider": self.provider, "sentences": self.sentences, "levels": levels}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
