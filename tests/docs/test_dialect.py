"""Codespell refuses the words of .ci/dialect.txt, in identifiers, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paths import PROJECT

pytest.importorskip("codespell_lib", reason="codespell is not installed")
WORDS = [line.partition("->")[0] for line in (PROJECT / ".ci" / "dialect.txt").read_text(encoding="utf-8").splitlines()]


def codespell(path: Path) -> subprocess.CompletedProcess[str]:
    """Check `path` with the configuration of the project."""
    return subprocess.run(
        [sys.executable, "-m", "codespell_lib", str(path)], cwd=PROJECT, capture_output=True, text=True
    )


def test_every_word_is_refused_as_a_part_of_an_identifier(tmp_path: Path):
    path = tmp_path / "example.py"
    path.write_text("".join(f"def test_what_is_{word}(): ...\nclass The{word.title()}Thing: ...\n" for word in WORDS))
    refused = codespell(path)
    assert refused.returncode != 0
    for number, word in enumerate(WORDS):
        assert f"example.py:{2 * number + 1}: {word} ==>" in refused.stdout
        assert f"example.py:{2 * number + 2}: {word.title()} ==>" in refused.stdout


def test_plain_text_passes(tmp_path: Path):
    path = tmp_path / "example.py"
    path.write_text('"""Return the normalized weights of the reference."""\n')
    assert codespell(path).returncode == 0
