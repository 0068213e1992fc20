"""Report of a verification as text: a line for each level, or every bound and mismatch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edge_attn.parity.results import LevelResult, TokenMismatch
from edge_attn.parity.tolerances import LEVELS
from edge_attn.runtimes.verification.diagnosis import worst

if TYPE_CHECKING:
    from edge_attn.runtimes.verification.report import Report

MAX_SHOWN = 5
"""Maximum number of mismatches in the short text."""
MAX_LISTED = 20
"""Maximum number of mismatches of one level in the text with details."""


def short(report: Report) -> str:
    """Return the report with a line for each level, the first mismatches, the first cause, and the verdict."""
    lines = [_heading(report)]
    for level in report.levels:
        if level.status != "not requested":
            lines.append(f"{level.name} {_compares(level.name):<44} {level.status:<10} {figure(level)}".rstrip())
    lines += _mismatches(report)
    return "\n".join([*lines, *_conclusion(report)])


def details(report: Report) -> str:
    """Return the report with every bound and every mismatch."""
    lines = [_heading(report)]
    for level in report.levels:
        if level.status == "not requested":
            continue
        reason = f" ({level.reason})" if level.reason else ""
        lines.append(f"{level.name} {LEVELS[level.name]}: {level.status}{reason}, {level.seconds:.1f} s")
        lines += [f"  {measurement}" for measurement in level.measurements]
        for mismatch in level.mismatches[:MAX_LISTED]:
            lines += [f"  {mismatch}", *(f"    {line}" for line in mismatch.texts())]
        if len(level.mismatches) > MAX_LISTED:
            lines.append(f"  and {len(level.mismatches) - MAX_LISTED} more mismatches (all of them: --json)")
    return "\n".join([*lines, *_conclusion(report)])


def figure(level: LevelResult) -> str:
    """Return the figure of a level that is closest to its bound, or the reason why it has none."""
    measurement = worst(level)
    if measurement is None:
        return f"({level.reason})" if level.reason else ""
    count = len(level.measurements)
    differing = {mismatch.sentence for mismatch in level.mismatches}
    sentences = f"; {len(differing)} sentences with other tokens" if differing else ""
    number = f"{measurement.name} {measurement.value:.2g} (at most {measurement.bound:.2g})"
    return f"worst of {count}: {number}{sentences}" if count > 1 else f"{number}{sentences}"


def coverage(report: Report) -> list[str]:
    """Return a line on the vocabularies, if the golden data does not use all of their entries."""
    partial = {name: counts for name, counts in report.coverage.items() if counts[0] < counts[1]}
    if not partial:
        return []
    shares = " and ".join(f"{used} of {size} {name}" for name, (used, size) in partial.items())
    return [f"coverage: the golden data uses {shares}; nothing is known of the others (export again to cover them)"]


def _heading(report: Report) -> str:
    return (
        f"{report.bundle} on {report.runtime} ({report.provider}), {report.precision}, {report.sentences} sentences, "
        f"against {report.against}"
    )


def _compares(name: str) -> str:
    return LEVELS[name].partition(": ")[2]


def changed_sentences(report: Report) -> list[TokenMismatch]:
    """Return the first mismatch of each sentence that is not excused."""
    changed: dict[int, TokenMismatch] = {}
    for level in report.levels:
        for mismatch in level.mismatches:
            if not mismatch.within_noise:
                changed.setdefault(mismatch.sentence, mismatch)
    return list(changed.values())


def _mismatches(report: Report) -> Iterator[str]:
    """Yield the first changed sentences with their texts, and the first excused mismatches."""
    changed = changed_sentences(report)
    for mismatch in changed[:MAX_SHOWN]:
        yield str(mismatch)
        yield from (f"  {line}" for line in mismatch.texts())
    excused = [mismatch for level in report.levels for mismatch in level.mismatches if mismatch.within_noise]
    yield from map(str, excused[:MAX_SHOWN])
    hidden = max(len(changed) - MAX_SHOWN, 0), max(len(excused) - MAX_SHOWN, 0)
    if any(hidden):
        yield f"and {hidden[0]} more sentences, {hidden[1]} more excused mismatches (--verbose)"


def _conclusion(report: Report) -> list[str]:
    lines = [f"override: {name} = {value:g}" for name, value in report.overrides.items()]
    skipped = [level.name for level in report.levels if level.status == "not requested"]
    lines += [f"not requested: {', '.join(skipped)}"] if skipped else []
    lines += coverage(report)
    lines += [f"cause: {report.cause}"] if report.cause else []
    lines += [f"next: {report.next}"] if report.next else []
    return [*lines, f"parity {'NOT TESTED' if report.verdict == 'not tested' else report.verdict}"]
