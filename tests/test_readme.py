"""The README: short, its two command lines are those of .ci/run, its table of runtimes follows the registry."""

from __future__ import annotations

import re

from paths import PROJECT

from edge_attn.registry import RUNTIME_PRECISIONS, RUNTIMES, VERBS

README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
VENV = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
SETUP = (
    VENV + "'.[export]' && .venv/bin/edge-attn demo\n",
    VENV + "'.[test,trt-rtx]' && .venv/bin/python -m pytest -n 2 --dist loadfile -m \"not slow\"\n",
)
"""The two command lines, which .ci/run reads from the README and runs."""


def test_readme_has_at_most_150_lines_and_one_picture():
    assert len(README.splitlines()) <= 150
    assert len(re.findall(r"!\[", README)) == 1


def test_first_blocks_are_the_command_lines_of_ci():
    ci = (PROJECT / ".ci" / "run").read_text(encoding="utf-8")
    for marker, line, (language, code) in zip(("demo", "tests"), SETUP, BLOCKS, strict=False):
        assert (language, code) == ("bash", line)
        assert f"\n<!-- {marker} -->\n```bash\n{line}```\n" in README
        assert f"readme_line {marker}" in ci


def test_five_more_commands_follow():
    section = README.partition("## Five more commands\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    verbs = [re.search(r"edge-attn (\w+)", code)[1] for code in commands]
    assert len(set(verbs)) == len(commands) == 5
    assert set(verbs) <= set(VERBS)


def test_table_of_runtimes_is_the_registry():
    rows = re.findall(r"^\| `([\w-]+)` \|[^|]*\| ([^|]*) \|", README, re.MULTILINE)
    assert {name: tuple(precisions.split(", ")) for name, precisions in rows} == RUNTIME_PRECISIONS
    assert [name for name, _ in rows] == list(RUNTIMES)
