"""A bundle is written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from bundle_files import FILES, a_manifest
from paths import TESTS

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import check_output, update_bundle, write_bundle
from edge_attn.errors import BundleError, ConfigError, InputError
from edge_attn.storage import locks


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


@pytest.mark.parametrize(("name", "is_file"), [("b.bin", True), ("b.ZIP", True), ("b", True), ("f.zip", False)])
def test_a_bundle_that_is_changed_keeps_the_form_that_it_has(tmp_path, name, is_file):
    write_bundle(tmp_path / ("a.zip" if is_file else "a"), a_manifest(), FILES)
    path = next(tmp_path.iterdir()).rename(tmp_path / name)
    update_bundle(path, with_file("note"))
    assert path.is_file() is is_file
    assert Bundle.open(path).read("text/note") == b"note"
    assert siblings(path) == [name]


def with_file(name: str):
    """A change that adds a small file of this name."""
    return lambda bundle: (bundle.manifest, {**bundle.files(), f"text/{name}": name.encode()})


def test_whoever_else_changes_the_bundle_waits(path):
    write_bundle(path, a_manifest(), FILES)
    begin = threading.Barrier(3)

    def add(who: str) -> None:
        begin.wait()
        for i in range(5):
            update_bundle(path, with_file(f"{who}{i}"))

    writers = [threading.Thread(target=add, args=(who,)) for who in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    added = Bundle.open(path).files().keys() - FILES.keys()
    assert added == {f"text/{who}{i}" for who in "abc" for i in range(5)}
    assert siblings(path) == [path.name]


def test_two_writers_at_once_leave_one_bundle_whole(path):
    write_bundle(path, a_manifest(), FILES)
    begin, refused = threading.Barrier(3), []

    def write(who: bytes) -> None:
        begin.wait()
        try:
            for _ in range(5):
                write_bundle(path, a_manifest(), {**FILES, "MODEL_CARD.md": who * 100_000}, force=True)
        except InputError as error:
            refused.append(error)

    writers = [threading.Thread(target=write, args=(who,)) for who in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert refused == []
    Bundle.open(path)
    assert siblings(path) == [path.name]


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path, read = tmp_path / "b", Path.read_bytes
    write_bundle(path, a_manifest(), FILES)

    def replaced(self):
        if self.name == "encoder.onnx":  # after the manifest
            monkeypatch.undo()
            write_bundle(path, a_manifest(), {**FILES, "graphs/encoder.onnx": b"another"}, force=True)
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", replaced)
    assert Bundle.open(path).read("graphs/encoder.onnx") == b"another"


def test_a_file_system_without_locks_is_written_to_all_the_same(path, monkeypatch):
    def unlocked(handle, kind):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(locks.fcntl, "flock", unlocked)
    for _ in range(2):
        write_bundle(path, a_manifest(), FILES, force=True)
    assert siblings(path) == [path.name]


def test_a_private_bundle_stays_private(path):
    write_bundle(path, a_manifest(), FILES)
    mode = 0o600 if path.is_file() else 0o700
    path.chmod(mode)
    update_bundle(path, with_file("note"))
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_change_that_fails_leaves_the_bundle(path):
    write_bundle(path, a_manifest(), FILES)
    with pytest.raises(BundleError, match="which files does not list"):
        update_bundle(path, lambda bundle: (bundle.manifest, {}))
    assert Bundle.open(path).files() == FILES
    assert siblings(path) == [path.name]


# ---- asked before long work


def test_a_folder_that_cannot_be_written_is_said_first(path, monkeypatch):
    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match="cannot be written: Read-only file system"):
        check_output(path, force=False)


@pytest.mark.parametrize("there", [True, False])
def test_a_disk_without_room_is_said_first(path, monkeypatch, there):
    if there:
        write_bundle(path, a_manifest(), FILES)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=999_999))
    check_output(path, force=True, size=999_999)
    with pytest.raises(InputError, match=r"cannot be written: 1\.0 MB are free in .*, it needs 2\.0 MB"):
        check_output(path, force=True, size=2_000_000)
    assert siblings(path) == ([path.name] if there else [])


# ---- killed


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from bundle_files import FILES, a_manifest
from edge_attn.bundle.writer import write_bundle
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
if {fsync}:
    counted(os, "fsync")
for name in sys.argv[3:]:
    counted(Path, name)
write_bundle(Path(sys.argv[1]), a_manifest(), {{**FILES, "MODEL_CARD.md": b"another"}}, force=True)
"""


def kill(path: Path, calls: int, *names: str) -> None:
    """Writes in a process that is killed at the call after so many of these methods of Path, or of fsync."""
    code = KILLED.format(tests=str(TESTS / "support"), fsync="fsync" in names)
    command = [sys.executable, "-c", code, str(path), str(calls), *(name for name in names if name != "fsync")]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.parametrize("calls", [0, 2, 5])
def test_a_kill_while_writing_leaves_no_bundle_and_the_next_write_succeeds(path, calls):
    kill(path, calls if path.suffix != ".zip" else calls // 3, "fsync", "rename")
    assert not path.exists()
    write_bundle(path, a_manifest(), FILES)
    Bundle.open(path)
    assert siblings(path) == [path.name]


@pytest.mark.parametrize(
    ("form", "calls", "again"),
    [
        *(("b", calls, again) for calls in range(3) for again in ("open", "write")),
        ("b", 1, "check"),
        ("b.zip", 0, "open"),
        ("b.zip", 0, "write"),
    ],
)
def test_a_kill_while_replacing_never_loses_the_bundle(tmp_path, form, calls, again):
    path = tmp_path / form
    write_bundle(path, a_manifest(), FILES)
    kill(path, calls, "rename")
    assert siblings(path) != [form]
    if again == "write":
        update_bundle(path, with_file("note"))
        assert siblings(path) == [form]
    elif again == "check":
        with pytest.raises(InputError, match="exists; choose another --out"):
            check_output(path, force=False)
    assert Bundle.open(path).read("MODEL_CARD.md") == (b"another" if calls == 2 else FILES["MODEL_CARD.md"])


def test_a_bundle_that_is_deleted_stays_deleted(tmp_path):
    """What it replaced lay beside it after a kill, until it was read."""
    path = tmp_path / "b"
    write_bundle(path, a_manifest(), FILES)
    kill(path, 2, "rename")
    assert len(siblings(path)) == 3  # the new one, the old one, the lock
    Bundle.open(path)
    assert siblings(path) == ["b"]
    shutil.rmtree(path)
    with pytest.raises(BundleError, match="there is no such file or folder"):
        Bundle.open(path)


def test_what_a_kill_left_where_nobody_may_write_does_no_harm(tmp_path, monkeypatch):
    path = tmp_path / "b"
    write_bundle(path, a_manifest(), FILES)
    (tmp_path / ".b.edge-attn.old").mkdir()

    @contextlib.contextmanager
    def refuse(lock):
        raise OSError(errno.EROFS, "Read-only file system")
        yield

    monkeypatch.setattr(locks, "file_lock", refuse)
    assert Bundle.open(path).files() == FILES
    (path / "graphs" / "encoder.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"encoder\.onnx has 0 bytes"):
        Bundle.open(path)


def test_what_cannot_be_put_back_is_said(tmp_path, monkeypatch):
    path = tmp_path / "b"
    write_bundle(path, a_manifest(), FILES)
    path.rename(tmp_path / ".b.edge-attn.old")

    def fails(self, target):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(BundleError, match=r"cannot be put back: .*Read-only file system"):
        Bundle.open(path)


def test_a_name_that_no_file_can_have_is_a_sentence(tmp_path):
    with pytest.raises(BundleError, match="cannot be read: File name too long"):
        Bundle.open(tmp_path / ("b" * 300))
