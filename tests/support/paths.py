"""Folders and files that the tests read."""

from __future__ import annotations

from pathlib import Path

import edge_attn

TESTS = Path(__file__).resolve().parent.parent
DATA = TESTS / "data"
KINDS_FOLDER = DATA / "kinds"
PROJECT = TESTS.parent
"""The checkout; for the tests of a wheel, a folder with the tests and pyproject.toml alone."""
SHARED = PROJECT.parent / "shared"
PACKAGE = Path(edge_attn.__file__).resolve().parent
EMBEDDED_CHECKPOINT = PACKAGE / "pretrained" / "en-fr"
FORMER_BUNDLE = DATA / "en-fr-format-2.zip"
"""The embedded model of 0.1.0: format 2, without byte fallback, so that it has unknown words."""
EMBEDDED_BUNDLE = PACKAGE / "pretrained" / "en-fr.zip"
