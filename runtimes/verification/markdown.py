"""Report of a verification as Markdown, for the summary of a pull request."""

from __future__ import annotations

import re

from edge_attn.parity.tolerances import LEVELS
from edge_attn.runtimes.verification.diagnosis import worst
from edge_attn.runtimes.verification.plain_text import changed_sentences, coverage
from edge_attn.runtimes.verification.report import FailedRun, Report

MAX_SHOWN = 5
"""Maximum number of changed sentences."""
VERDICTS = {"holds": "parity holds", "fails": "parity **fails**", "not tested": "parity was **not tested**"}


def markdown(report: Report | FailedRun) -> str:
    """Return the verdict, a table of levels, the worst figure of each, and the first changed sentences."""
    where = f"`{report.bundle}` on `{report.runtime}`, {report.precision}"
    if isinstance(report, FailedRun):
        lines = [f"### edge-attn verify: **error** (exit code {report.exit_code})", "", where, "", _cell(report.reason)]
        return "\n".join(lines) + "\n"
    lines = [
        f"### edge-attn verify: {VERDICTS[report.verdict]}",
        "",
        f"{where}, {report.provider}, {report.sentences} sentences against {report.against}, {report.seconds:.1f} s",
        "",
        "| Level | Compared | Result | Worst figure | At most |",
        "|---|---|---|---|---|",
    ]
    for level in report.levels:
        if level.status != "not requested":
            measurement = worst(level)
            figures = (f"{measurement.name} {measurement.value:.3g}", f"{measurement.bound:.3g}") if measurement else ()
            cells = (level.name, LEVELS[level.name].partition(": ")[2], level.status, *(figures or (level.reason, "")))
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
    changed = changed_sentences(report)
    if changed:
        lines += ["", "| Sentence | Source | Reference | Device | Step |", "|---|---|---|---|---|"]
    for m in changed[:MAX_SHOWN]:
        pieces = f"{m.step}: {m.candidate_piece} instead of {m.reference_piece}"
        cells = (str(m.sentence), m.source, m.reference_text, m.candidate_text, pieces)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    if len(changed) > MAX_SHOWN:
        lines += ["", f"and {len(changed) - MAX_SHOWN} more changed sentences"]
    notes = [f"override: {name} = {value:g}" for name, value in report.overrides.items()]
    notes += coverage(report)
    notes += [f"cause: {report.cause}"] if report.cause else []
    for note in notes:
        lines += ["", _cell(note)]
    if report.next:
        lines += ["", f"next: `{report.next}`"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Return text that is one line of Markdown and shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(text.split()))
