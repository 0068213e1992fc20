"""Report of a verification: as a table, as JSON (with its schema) and as JUnit XML."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edge_attn import __version__
from edge_attn.bundle.output_file import write_output_file
from edge_attn.parity.results import LevelResult
from edge_attn.parity.tolerances import LEVELS
from edge_attn.runtimes.xml_text import xml_text

MAX_LISTED = 20
"""Maximum number of token mismatches of one level in the text."""

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
    """Result of one verification."""

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
        """Return holds, fails or not tested; a level that could not run is never a pass."""
        statuses = {level.status for level in self.levels}
        if "fails" in statuses:
            return "fails"
        return "not tested" if "not tested" in statuses or "holds" not in statuses else "holds"

    def level(self, name: str) -> LevelResult:
        """Return the result of one of the levels that the task has or that were requested."""
        return next(level for level in self.levels if level.name == name)

    @property
    def exit_code(self) -> int:
        """Return 0 if parity holds, 1 if it fails, 3 if it was not tested."""
        return {"holds": 0, "fails": 1, "not tested": 3}[self.verdict]

    def content(self) -> dict[str, Any]:
        """Return the report as JSON values, as SCHEMA describes them. NaN and infinity are strings."""
        levels = [
            {
                "name": level.name,
                "status": level.status,
                "reason": level.reason,
                "findings": [{**dataclasses.asdict(measured), "ok": measured.ok} for measured in level.measurements],
                "flips": [{**dataclasses.asdict(flip), "excused": flip.within_noise} for flip in level.mismatches],
            }
            for level in self.levels
        ]
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        content = {**fields, "levels": levels, "verdict": self.verdict, "edge_attn": __version__}
        json_values: dict[str, Any] = _json_values(content)
        return json_values

    def json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.content(), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def junit(self) -> str:
        """Return JUnit XML: a test case a measurement; a level not tested is an error, one not requested is skipped."""
        suite = ElementTree.Element("testsuite", name=f"edge-attn verify {self.bundle} on {self.runtime}")
        for level in self.levels:
            if level.measurements:
                for measurement in level.measurements:
                    case = ElementTree.SubElement(suite, "testcase", classname=level.name, name=measurement.name)
                    if not measurement.ok:
                        ElementTree.SubElement(case, "failure", message=str(measurement)).text = "\n".join(
                            map(str, level.mismatches)
                        )
            else:
                case = ElementTree.SubElement(suite, "testcase", classname=level.name, name=LEVELS[level.name])
                kind = "error" if level.status == "not tested" else "skipped"
                ElementTree.SubElement(case, kind, message=f"{level.status} {level.reason}".strip())
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
        suite.set("tests", str(len(suite)))
        for element in suite.iter():
            element.attrib = {name: xml_text(value) for name, value in element.attrib.items()}
            element.text = element.text and xml_text(element.text)
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"

    def write_junit(self, path: Path) -> None:
        """Write the report to `path` as JUnit XML.

        Raises:
            InputError: the file cannot be written.
        """
        write_output_file(path, self.junit())

    def __str__(self) -> str:
        lines = [
            f"{self.bundle} on {self.runtime} ({self.provider}), {self.precision}, {self.sentences} sentences, "
            f"against {self.against}"
        ]
        for level in self.levels:
            lines.append(
                f"{level.name} {LEVELS[level.name]}: {level.status}{f' ({level.reason})' if level.reason else ''}"
            )
            lines += [f"  {measurement}" for measurement in level.measurements]
            lines += [f"  {mismatch}" for mismatch in level.mismatches[:MAX_LISTED]]
            if len(level.mismatches) > MAX_LISTED:
                lines.append(f"  and {len(level.mismatches) - MAX_LISTED} more mismatches (all of them: --json)")
        lines += [f"override: {name} = {value:g}" for name, value in self.overrides.items()]
        lines.append(f"parity {'NOT TESTED' if self.verdict == 'not tested' else self.verdict}")
        return "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """Return the part of the report that a manifest contains."""
        levels = {level.name: level.status for level in self.levels if level.status != "not requested"}
        summary = {"runtime": self.runtime, "provider": self.provider, "sentences": self.sentences, "levels": levels}
        return {**summary, "overrides": self.overrides} if self.overrides else summary


def _json_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_values(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
