"""Changed bundles for the tests of `edge-attn verify`, and summaries of its reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import write_bundle
from edge_attn.runtimes.verification.report import Report

Files = dict[str, bytes]


def failing(report: Report) -> set[str]:
    """Return a name such as `L2.kl` for each measurement that fails, without its tensor."""
    return {f"{f.level}.{f.name.partition(' ')[0]}" for level in report.levels for f in level.measurements if not f.ok}


def statuses(report: Report) -> dict[str, str]:
    return {level.name: level.status for level in report.levels}


def planted(opened: Bundle, path: Path, change: Callable[[Files], None], **manifest) -> Path:
    """Write a bundle with changed files and matching hashes; return its path."""
    files = {name: opened.read(name) for name in opened.manifest.files}
    change(files)
    write_bundle(path, dataclasses.replace(opened.manifest, **manifest), files)
    return path
