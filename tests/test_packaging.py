"""The distribution: one import package, every file of it and no other, nothing of the machine that built it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
from paths import PROJECT

import edge_attn
from edge_attn.registry import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PRETRAINED = PROJECT / "edge_attn" / "pretrained"
CHECKPOINT = "edge_attn/pretrained/en-fr/"
"""In the repository only: the wheel has the bundle that was exported from it."""


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Return the files that git tracks, or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        name
        for name in dict.fromkeys(listed.stdout.split("\0"))
        if name and ((PROJECT / name).is_file() or (PROJECT / name).is_symlink())
    ]


@pytest.fixture(scope="module")
def wheel(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the names in the wheel that a fresh copy builds."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, copy / name, follow_symlinks=False)
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(copy)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = out.iterdir()
    with zipfile.ZipFile(path) as opened:
        return opened.namelist()


def test_version_is_defined_once():
    assert METADATA["version"] == edge_attn.__version__ == metadata.version("edge-attn")


def test_distribution_installs_one_import_package(wheel: list[str]):
    assert {name.partition("/")[0] for name in wheel if ".dist-info/" not in name} == {"edge_attn"}
    assert set(metadata.packages_distributions()["edge_attn"]) == {"edge-attn"}


def test_wheel_has_every_file_of_the_package_and_no_other(wheel: list[str], tracked: list[str]):
    inside = {name for name in wheel if ".dist-info/" not in name}
    linked = [f"edge_attn/{name}" for name in tracked if name.startswith(("export/", "runtimes/"))]
    own = [name for name in tracked if name.startswith("edge_attn/") and not (PROJECT / name).is_symlink()]
    packaged = {*own, *linked}
    assert inside == {name for name in packaged if not name.startswith(CHECKPOINT)}
    assert {"edge_attn/py.typed", "edge_attn/ops/gru.py", "edge_attn/pretrained/date.toml"} <= inside


def test_wheel_has_the_embedded_model_once(wheel: list[str], tracked: list[str]):
    assert any(name.startswith(CHECKPOINT) for name in tracked)
    assert [name for name in wheel if name.endswith((".zip", ".safetensors"))] == ["edge_attn/pretrained/en-fr.zip"]


def test_extras_are_those_of_the_registry_and_of_the_documents():
    extras = METADATA["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(extras)
    page = (PROJECT / "docs" / "quick-start.md").read_text(encoding="utf-8")
    rows = page.partition("| Extra |")[2].partition("\n\n")[0].splitlines()[2:]
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])} == set(extras)


def test_printed_install_commands_name_extras_that_exist(tracked: list[str]):
    """`pip install 'edge-attn[EXTRA]'` adds an extra to the installed distribution, without an index of it."""
    sources = "".join((PROJECT / name).read_text(encoding="utf-8") for name in tracked if name.endswith((".py", ".md")))
    printed = {name for names in re.findall(r"edge-attn\[([a-z,-]+)\]", sources) for name in names.split(",")}
    assert printed <= set(METADATA["optional-dependencies"])


def test_device_needs_neither_torch_nor_onnx():
    needed = METADATA["dependencies"] + METADATA["optional-dependencies"]["cpu"]
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in needed}
    assert names == {"numpy", "click", "sentencepiece", "tqdm", "tomli", "onnxruntime"}


def test_constraints_pin_every_dependency():
    pinned = re.findall(r"^([\w-]+)==", (PROJECT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    extras = METADATA["optional-dependencies"]
    requirements = METADATA["dependencies"] + [
        r for name in ("cpu", "export", "train", "test", "docs") for r in extras[name]
    ]
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in requirements} - {"edge-attn"}
    assert names <= set(pinned)


def test_no_file_has_a_path_of_one_machine_or_an_index_address(tracked: list[str]):
    # home/user and opt/conda are on many machines
    ours = rb"(?:work|root|Users)/|home/(?!user\b)|opt/(?!conda\b)"
    path = re.compile(rb"(^|[^A-Za-z0-9_.])/(" + ours + rb")", re.MULTILINE)
    index = re.compile(b"|".join([rb"--(extra-)?index" + rb"-url", rb"index_" + rb"url *=", rb"find" + rb"-links"]))
    for name in tracked:
        data = b"\0" if (PROJECT / name).is_symlink() else (PROJECT / name).read_bytes()
        if b"\0" not in data:
            assert not path.search(data), f"{name}: {path.search(data)}"
            assert not index.search(data), f"{name}: {index.search(data)}"


def test_embedded_model_is_small():
    checkpoint = [file for file in (PRETRAINED / "en-fr").rglob("*") if file.is_file()]
    for files in ([PRETRAINED / "en-fr.zip"], checkpoint):  # one of them is installed, never both
        assert sum(file.stat().st_size for file in files) <= 24_000_000
