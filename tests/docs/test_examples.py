"""Every example runs, is short, and has the next number."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from paths import PROJECT

EXAMPLES = sorted((PROJECT / "examples").glob("*.py"))
SLOW = {"04_export_a_checkpoint", "06_train_a_small_model"}
"""Examples that take several seconds."""


def test_examples_are_numbered_and_short():
    assert [path.name[:3] for path in EXAMPLES] == [f"{i:02}_" for i in range(len(EXAMPLES))]
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 40, path.name


@pytest.mark.usefixtures("needs_torch")
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW)) for path in EXAMPLES],
)
def test_example_runs(path, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout
    assert list(tmp_path.iterdir()) == []
