"""Fixture: a bundle exported in this session."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_attn.export.pipeline import export


@pytest.fixture(scope="session")
def bundle(toy_checkpoint, tmp_path_factory) -> Path:
    """Export the toy model with four candidates and a user's sentences, to read only."""
    folder = tmp_path_factory.mktemp("exported")
    lines = folder / "lines"
    lines.write_text("the cat sees a dog\n\nevery small child follows this old king\nbread\n", encoding="utf-8")
    export(toy_checkpoint, folder / "bundle", candidates=4, sentences=lines)
    assert {path.name for path in folder.iterdir()} == {"bundle", "lines"}
    return folder / "bundle"
