"""Report of a verification as JUnit XML: a test case for each measurement."""

from __future__ import annotations

from xml.etree import ElementTree

from edge_attn import __version__
from edge_attn.parity.results import LevelResult, Measurement
from edge_attn.parity.tolerances import LEVELS
from edge_attn.runtimes.verification.report import FailedRun, Report
from edge_attn.runtimes.xml_text import xml_text


def junit(report: Report | FailedRun) -> str:
    """Return JUnit XML. A level that was not tested is an error, and one that was not requested is left out."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"edge-attn verify {report.bundle} on {report.runtime}",
        file=report.bundle,
        timestamp=report.time,
        time=f"{report.seconds:.3f}",
    )
    _properties(suite, report)
    if isinstance(report, FailedRun):
        case = _case(suite, "verify", f"{report.bundle} on {report.runtime}", report.seconds)
        kind = f"exit code {report.exit_code}"
        ElementTree.SubElement(case, "error", message=report.reason, type=kind).text = report.reason
    else:
        for level in report.levels:
            _level(suite, level, report)
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    for element in suite.iter():
        element.attrib = {name: xml_text(value) for name, value in element.attrib.items()}
        element.text = element.text and xml_text(element.text)
    suite.set("tests", str(len(suite.findall("testcase"))))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _properties(suite: ElementTree.Element, report: Report | FailedRun) -> None:
    values = {"edge_attn": __version__, "verdict": report.verdict, "precision": report.precision}
    if isinstance(report, Report):
        values.update(provider=report.provider, against=report.against, sentences=str(report.sentences))
        values.update({f"override {name}": f"{value:g}" for name, value in report.overrides.items()})
        values.update({f"coverage of {name}": f"{a} of {b}" for name, (a, b) in report.coverage.items()})
        values.update({name: text for name, text in (("cause", report.cause), ("next", report.next)) if text})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in values.items():
        ElementTree.SubElement(properties, "property", name=name, value=value)


def _level(suite: ElementTree.Element, level: LevelResult, report: Report) -> None:
    if level.measurements:
        for measurement in level.measurements:
            case = _case(suite, level.name, measurement.name, level.seconds / len(level.measurements))
            if not measurement.ok:
                failure = ElementTree.SubElement(case, "failure", message=str(measurement))
                failure.text = _explanation(level, measurement, report)
    elif level.status != "not requested":
        case = _case(suite, level.name, LEVELS[level.name], level.seconds)
        tag = "failure" if level.status == "fails" else "error"
        ElementTree.SubElement(case, tag, message=f"{level.status} {level.reason}".strip())


def _explanation(level: LevelResult, measurement: Measurement, report: Report) -> str:
    """Return the cause, the next command, and the mismatches of the search that was measured, with their texts."""
    where = measurement.name.partition(" ")[2]
    mismatches = [m for m in level.mismatches if m.where == where] or level.mismatches
    lines = [f"cause: {report.cause}", *([f"next: {report.next}"] if report.next else [])]
    for mismatch in mismatches:
        lines += [str(mismatch), *(f"  {line}" for line in mismatch.texts())]
    return "\n".join(lines)


def _case(suite: ElementTree.Element, level: str, name: str, seconds: float) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=level, name=name, time=f"{seconds:.3f}")
