"""The documents: their commands run, their links and files exist, every command and exit code is in them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from paths import PROJECT

import edge_attn
from edge_attn.errors import EdgeAttnError
from edge_attn.registry import VERBS

DOCS = PROJECT / "docs"
EXECUTED = ("docs/quick-start.md", "README.md", "docs/own-model.md", "docs/targets.md")
"""Pages whose blocks run, in this order, in one folder; those of docs/jetson.md need a board."""
PAGES = {
    str(path.relative_to(PROJECT)): path.read_text(encoding="utf-8")
    for path in (PROJECT / "README.md", PROJECT / ".github" / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))
}
FOLDERS = r"(?:edge_attn|export|runtimes|tests|docs|examples|\.ci|\.github)"


def blocks(page: str) -> list[tuple[str, str]]:
    """Return (language, code) of each bash and python block that is not a quote from a file."""
    unquoted = re.sub(r"^<!-- quote .*? -->\n```python\n.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    code_blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", unquoted, re.MULTILINE | re.DOTALL)
    return code_blocks[2:] if page == "README.md" else code_blocks  # .ci/run runs the first two


@pytest.mark.slow
def test_code_of_every_page_runs(tmp_path: Path):
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    for page in EXECUTED:
        for language, code in blocks(page):
            interpreter = {"bash": ["bash", "-euo", "pipefail", "-c", code], "python": [sys.executable, "-c", code]}
            done = subprocess.run(
                interpreter[language], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, f"{page}: this block returns {done.returncode}:\n{code}\n{done.stderr[-4000:]}"


def test_every_page_with_code_is_executed():
    with_code = {page for page in PAGES if page.startswith("docs/") and blocks(page)}
    assert with_code - {"docs/jetson.md"} == set(EXECUTED) - {"README.md"}


def test_citation_has_the_version_of_the_package():
    citation = (PROJECT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {edge_attn.__version__}\n" in citation
    assert "\nlicense: Apache-2.0\n" in citation


def test_every_command_has_an_example():
    commands = re.findall(r"edge-attn (\w+)", "".join(code for page in EXECUTED for _, code in blocks(page)))
    verbs = {verb.partition(" ")[0] for verb in VERBS} - {"show", "picture", "doctor"}  # doctor: docs/jetson.md
    assert verbs <= set(commands) <= {verb.partition(" ")[0] for verb in VERBS}


def test_every_exit_code_is_documented():
    def codes(error: type[EdgeAttnError]) -> set[int]:
        return {error.exit_code}.union(*map(codes, error.__subclasses__()))

    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGES["docs/concepts.md"], re.MULTILINE)}
    assert documented == codes(EdgeAttnError) | {0, 128 + signal.SIGPIPE}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str):
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        file, _, heading = link.partition("#")
        target = (PROJECT / page).parent / file if file else PROJECT / page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, link


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str):
    names = re.findall(rf"`({FOLDERS}/[\w./-]*)(?=[` ])", PAGES[page])
    assert [name for name in names if not (PROJECT / name).exists()] == []


def test_site_has_every_page():
    nav = re.findall(r": ([\w-]+\.md)$", (PROJECT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(nav) == sorted(path.name for path in DOCS.glob("*.md"))
