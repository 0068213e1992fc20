"""Changed bundles for the tests of `edge-attn verify`, and what its reports say of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import write_bundle
from edge_attn.runtimes.verification.report import Report

Files = dict[str, bytes]


def failing(report: Report) -> set[str]:
    """`L2.kl` for each finding that does not hold, without what it compared."""
    return {f"{f.level}.{f.name.partition(' ')[0]}" for level in report.levels for f in level.measurements if not f.ok}


def statuses(report: Report) -> dict[str, str]:
    return {level.name: level.status for level in report.levels}


def planted(opened: Bundle, path: Path, change: Callable[[Files], None], **manifest) -> Path:
    """A bundle with changed files that opens all the same."""
    files = {name: opened.read(name) for name in opened.manifest.files}
    change(files)
    write_bundle(path, dataclasses.replace(opened.manifest, **manifest), files)
    return path
