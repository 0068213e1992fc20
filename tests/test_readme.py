"""Every code block of the README runs, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from paths import PROJECT

from edge_attn.errors import EdgeAttnError
from edge_attn.registry import VERBS

README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
VENV = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
SETUP = (
    VENV + "'.[export]' && .venv/bin/edge-attn demo\n",
    VENV + "'.[test,trt-rtx]' && .venv/bin/python -m pytest -n 2 --dist loadfile\n",
)
"""The two command lines, which .ci/run reads from the README and runs."""


def test_ci_runs_the_two_command_lines_which_come_first():
    ci = (PROJECT / ".ci" / "run").read_text(encoding="utf-8")
    for marker, line, (language, code) in zip(("demo", "tests"), SETUP, BLOCKS, strict=False):
        assert (language, code) == ("bash", line)
        assert f"\n<!-- {marker} -->\n```bash\n{line}```\n" in README
        assert f"readme_line {marker}" in ci


@pytest.mark.slow
def test_every_other_block_runs(tmp_path: Path):
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    for language, code in BLOCKS[2:]:
        interpreter = {"bash": ["bash", "-euo", "pipefail", "-c", code], "python": [sys.executable, "-c", code]}
        done = subprocess.run(
            interpreter[language], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"this block of README.md gives {done.returncode}:\n{code}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize(
    ("file", "code"), re.findall(r"^<!-- (\S+\.py) -->\n```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
)
def test_code_that_it_quotes_stands_in_its_file(file: str, code: str):
    lines = (PROJECT / file).read_text(encoding="utf-8").splitlines()
    assert [line for line in code.splitlines() if line not in lines] == []


def test_every_verb_has_an_example():
    shown = set(re.findall(r"edge-attn (\w+)", "".join(code for language, code in BLOCKS if language == "bash")))
    assert {
        "train",
        "export",
        "translate",
        "verify",
        "evaluate",
        "inspect",
        "demo",
        "optimize",
        "score",
        "align",
    } <= shown
    assert shown <= set(VERBS)


def test_every_exit_code_is_told():
    def kinds(error: type[EdgeAttnError]) -> set[int]:
        return {error.exit_code}.union(*map(kinds, error.__subclasses__()))

    told = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert told == kinds(EdgeAttnError) | {0}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`((?:edge_attn|export|runtimes|tests)/[\w/.-]*)`", README))))
def test_every_file_that_it_names_exists(target: str):
    assert (PROJECT / target).exists()
