"""A bundle is written whole or not at all."""

from __future__ import annotations

import errno
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_files import FILES, a_manifest

from edge_attn.bundle import Bundle, write_bundle
from edge_attn.errors import BundleError, ConfigError, InputError


@pytest.fixture(params=["folder", "zip"])
def path(request, tmp_path) -> Path:
    return tmp_path / {"folder": "bundle", "zip": "bundle.zip"}[request.param]


def siblings(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir())


def test_an_existing_path_is_kept_without_force_and_replaced_with_it(path):
    write_bundle(path, a_manifest(), FILES)
    other = {**FILES, "MODEL_CARD.md": b"another"}
    with pytest.raises(InputError, match=r"exists; choose another --out, or give --force"):
        write_bundle(path, a_manifest(), other)
    assert Bundle.open(path).read("MODEL_CARD.md") == FILES["MODEL_CARD.md"]
    write_bundle(path, a_manifest(), other, force=True)
    assert Bundle.open(path).read("MODEL_CARD.md") == b"another"
    assert siblings(path) == [path.name]


@pytest.mark.parametrize("name", ["folder", "folder.zip"])
def test_force_never_replaces_what_is_no_bundle(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("more years of work")
    for path in (tmp_path / name, tmp_path / "file"):
        with pytest.raises(InputError, match="is not a bundle, so --force does not replace it"):
            write_bundle(path, a_manifest(), FILES, force=True)
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"
    assert siblings(tmp_path / name) == sorted(["file", name])


def test_force_replaces_an_empty_folder_and_a_bundle_of_the_other_kind(tmp_path):
    (tmp_path / "b").mkdir()
    write_bundle(tmp_path / "b", a_manifest(), FILES, force=True)
    write_bundle(tmp_path / "c.zip", a_manifest(), FILES)
    (tmp_path / "c.zip").rename(tmp_path / "c")
    write_bundle(tmp_path / "c", a_manifest(), FILES, force=True)
    assert (tmp_path / "c").is_dir()
    Bundle.open(tmp_path / "b")
    Bundle.open(tmp_path / "c")


def test_a_full_disk_leaves_nothing(path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = []

    def full(self, mode="r", **_):
        opened.append(self)
        if len(opened) < (3 if path.suffix != ".zip" else 1):
            return open(self, mode)  # noqa: PTH123  # Path.open is what this stands for
        return Full()

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        write_bundle(path, a_manifest(), FILES)
    monkeypatch.undo()
    assert siblings(path) == []


def test_a_rename_that_fails_keeps_the_old_bundle(path, monkeypatch):
    write_bundle(path, a_manifest(), FILES)
    rename = Path.rename

    def fails(self, target):
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(InputError, match="Input/output error"):
        write_bundle(path, a_manifest(), {**FILES, "MODEL_CARD.md": b"another"}, force=True)
    monkeypatch.undo()
    assert Bundle.open(path).read("MODEL_CARD.md") == FILES["MODEL_CARD.md"]
    assert siblings(path) == [path.name]


def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/bundle cannot be written: (Not a directory|File exists)"):
        write_bundle(tmp_path / "file" / "bundle", a_manifest(), FILES)


def test_writing_refuses_what_opening_would(path):
    with pytest.raises(ConfigError, match="leaves the bundle"):
        write_bundle(path, a_manifest(), {**FILES, "../x": b""})
    with pytest.raises(BundleError, match="which files does not list"):
        write_bundle(path, a_manifest(), {"MODEL_CARD.md": b""})
    assert siblings(path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from bundle_files import FILES, a_manifest
from edge_attn.bundle import write_bundle
left = int(sys.argv[2])
def counted(owner, name):
    real = getattr(owner, name)
    def call(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    setattr(owner, name, call)
counted(os, "fsync")
for name in ("mkdir", "rename", "replace"):  # of Path: Python 3.10 takes its own from os before a test can
    counted(Path, name)
write_bundle(Path(sys.argv[1]), a_manifest(), FILES)
"""


@pytest.mark.parametrize("calls", [0, 2, 5])
def test_a_kill_while_writing_leaves_no_bundle_and_the_next_write_succeeds(path, calls):
    code = KILLED.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", code, str(path), str(calls if path.suffix != ".zip" else calls // 3)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not path.exists()
    write_bundle(path, a_manifest(), FILES)
    Bundle.open(path)
    assert siblings(path) == [path.name]
