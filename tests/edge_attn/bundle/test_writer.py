"""A bundle is written completely or not at all."""

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
from bundle_files import FILES, make_manifest
from paths import TESTS

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.bundle.writer import check_output, targets_of, update_bundle, write_bundle
from edge_attn.errors import BundleError, ConfigError, InputError
from edge_attn.storage import locks


@pytest.fixture(params=["folder", "zip"])
def path(request, tmp_path) -> Path:
    return tmp_path / {"folder": "bundle", "zip": "bundle.zip"}[request.param]


def siblings(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir())


def test_existing_bundle_is_replaced_only_with_force(path):
    write_bundle(path, make_manifest(), FILES)
    other = {**FILES, "MODEL_CARD.md": b"another"}
    with pytest.raises(InputError, match=r"exists; choose another `out`, or add `force`"):
        write_bundle(path, make_manifest(), other)
    assert Bundle.open(path).read("MODEL_CARD.md") == FILES["MODEL_CARD.md"]
    write_bundle(path, make_manifest(), other, force=True)
    assert Bundle.open(path).read("MODEL_CARD.md") == b"another"
    assert siblings(path) == [path.name]


@pytest.mark.parametrize("name", ["folder", "folder.zip"])
def test_force_replaces_only_a_bundle(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("more years of work")
    for path in (tmp_path / name, tmp_path / "file"):
        with pytest.raises(InputError, match="is not a bundle, so `force` does not replace it"):
            write_bundle(path, make_manifest(), FILES, force=True)
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"
    assert siblings(tmp_path / name) == sorted(["file", name])


def test_force_replaces_an_empty_folder_and_another_form(tmp_path):
    (tmp_path / "b").mkdir()
    write_bundle(tmp_path / "b", make_manifest(), FILES, force=True)
    write_bundle(tmp_path / "c.zip", make_manifest(), FILES)
    (tmp_path / "c.zip").rename(tmp_path / "c")
    write_bundle(tmp_path / "c", make_manifest(), FILES, force=True)
    assert (tmp_path / "c").is_dir()
    Bundle.open(tmp_path / "b")
    Bundle.open(tmp_path / "c")


def test_full_disk_leaves_nothing(path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = []

    def full(self, mode="r", **_):
        opened.append(self)
        if len(opened) < (3 if path.suffix != ".zip" else 1):
            return open(self, mode)  # noqa: PTH123  # this function replaces Path.open
        return Full()

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        write_bundle(path, make_manifest(), FILES)
    monkeypatch.undo()
    assert siblings(path) == []


def test_failed_rename_keeps_the_old_bundle(path, monkeypatch):
    write_bundle(path, make_manifest(), FILES)
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(InputError, match="Input/output error"):
        write_bundle(path, make_manifest(), {**FILES, "MODEL_CARD.md": b"another"}, force=True)
    monkeypatch.undo()
    assert Bundle.open(path).read("MODEL_CARD.md") == FILES["MODEL_CARD.md"]
    assert siblings(path) == [path.name]


def test_unwritable_path_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/bundle cannot be written: (Not a directory|File exists)"):
        write_bundle(tmp_path / "file" / "bundle", make_manifest(), FILES)


def test_invalid_bundle_is_not_written(path):
    with pytest.raises(ConfigError, match="leaves the bundle"):
        write_bundle(path, make_manifest(), {**FILES, "../x": b""})
    with pytest.raises(BundleError, match="which files does not list"):
        write_bundle(path, make_manifest(), {"MODEL_CARD.md": b""})
    assert siblings(path) == []


@pytest.mark.parametrize(("name", "is_file"), [("b.bin", True), ("b.ZIP", True), ("b", True), ("f.zip", False)])
def test_update_keeps_the_form_of_the_bundle(tmp_path, name, is_file):
    write_bundle(tmp_path / ("a.zip" if is_file else "a"), make_manifest(), FILES)
    path = next(tmp_path.iterdir()).rename(tmp_path / name)
    update_bundle(path, with_file("note"))
    assert path.is_file() is is_file
    assert Bundle.open(path).read("text/note") == b"note"
    assert siblings(path) == [name]


def with_file(name: str):
    """Return a change that adds a small file with this name."""
    return lambda bundle: (bundle.manifest, {**bundle.files(), f"text/{name}": name.encode()})


def test_concurrent_updates_wait_for_each_other(path):
    write_bundle(path, make_manifest(), FILES)
    start = threading.Barrier(3)

    def add(writer: str) -> None:
        start.wait()
        for i in range(5):
            update_bundle(path, with_file(f"{writer}{i}"))

    writers = [threading.Thread(target=add, args=(name,)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    added = Bundle.open(path).files().keys() - FILES.keys()
    assert added == {f"text/{writer}{i}" for writer in "abc" for i in range(5)}
    assert siblings(path) == [path.name]


def test_concurrent_writers_leave_a_complete_bundle(path):
    write_bundle(path, make_manifest(), FILES)
    start, refused = threading.Barrier(3), []

    def write(content: bytes) -> None:
        start.wait()
        try:
            for _ in range(5):
                write_bundle(path, make_manifest(), {**FILES, "MODEL_CARD.md": content * 100_000}, force=True)
        except InputError as error:
            refused.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert refused == []
    Bundle.open(path)
    assert siblings(path) == [path.name]


def test_bundle_replaced_during_a_read_is_read_again(tmp_path, monkeypatch):
    path, read = tmp_path / "b", Path.read_bytes
    write_bundle(path, make_manifest(), FILES)

    def replaced(self):
        if self.name == "encoder.onnx":  # after the manifest
            monkeypatch.undo()
            write_bundle(path, make_manifest(), {**FILES, "graphs/encoder.onnx": b"another"}, force=True)
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", replaced)
    assert Bundle.open(path).read("graphs/encoder.onnx") == b"another"


def test_bundle_is_written_on_a_file_system_without_locks(path, monkeypatch):
    def unlocked(handle, kind):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(locks.fcntl, "flock", unlocked)
    for _ in range(2):
        write_bundle(path, make_manifest(), FILES, force=True)
    assert siblings(path) == [path.name]


def test_private_bundle_stays_private(path):
    write_bundle(path, make_manifest(), FILES)
    mode = 0o600 if path.is_file() else 0o700
    path.chmod(mode)
    update_bundle(path, with_file("note"))
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_failed_update_leaves_the_bundle(path):
    write_bundle(path, make_manifest(), FILES)
    with pytest.raises(BundleError, match="which files does not list"):
        update_bundle(path, lambda bundle: (bundle.manifest, {}))
    assert Bundle.open(path).files() == FILES
    assert siblings(path) == [path.name]


# ---- checks before long work


def test_check_output_refuses_a_read_only_folder(path, monkeypatch):
    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match="cannot be written: Read-only file system"):
        check_output(path, force=False)


@pytest.mark.parametrize("exists", [True, False])
def test_check_output_refuses_a_full_disk(path, monkeypatch, exists):
    if exists:
        write_bundle(path, make_manifest(), FILES)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=999_999))
    check_output(path, force=True, size=999_999)
    with pytest.raises(InputError, match=r"cannot be written: 1\.0 MB are free in .*, it needs 2\.0 MB"):
        check_output(path, force=True, size=2_000_000)
    assert siblings(path) == ([path.name] if exists else [])


# ---- killed writers


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from bundle_files import FILES, make_manifest
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
write_bundle(Path(sys.argv[1]), make_manifest(), {{**FILES, "MODEL_CARD.md": b"another"}}, force=True)
"""


def kill(path: Path, calls: int, *names: str) -> None:
    """Write in a process that is killed after `calls` calls of the methods `names` of Path, or of os.fsync."""
    code = KILLED.format(tests=str(TESTS / "support"), fsync="fsync" in names)
    command = [sys.executable, "-c", code, str(path), str(calls), *(name for name in names if name != "fsync")]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.parametrize("calls", [0, 2, 5])
def test_kill_while_writing_leaves_no_bundle(path, calls):
    kill(path, calls if path.suffix != ".zip" else calls // 3, "fsync", "rename")
    assert not path.exists()
    write_bundle(path, make_manifest(), FILES)
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
def test_kill_while_replacing_never_loses_the_bundle(tmp_path, form, calls, again):
    path = tmp_path / form
    write_bundle(path, make_manifest(), FILES)
    kill(path, calls, "rename")
    assert siblings(path) != [form]
    if again == "write":
        update_bundle(path, with_file("note"))
        assert siblings(path) == [form]
    elif again == "check":
        with pytest.raises(InputError, match="exists; choose another `out`"):
            check_output(path, force=False)
    assert Bundle.open(path).read("MODEL_CARD.md") == (b"another" if calls == 2 else FILES["MODEL_CARD.md"])


def test_deleted_bundle_stays_deleted(tmp_path):
    """A kill leaves the old bundle beside the new one until the next read."""
    path = tmp_path / "b"
    write_bundle(path, make_manifest(), FILES)
    kill(path, 2, "rename")
    assert len(siblings(path)) == 3  # the new one, the old one, the lock
    Bundle.open(path)
    assert siblings(path) == ["b"]
    shutil.rmtree(path)
    with pytest.raises(BundleError, match="there is no such file or folder"):
        Bundle.open(path)


def test_leftovers_in_a_read_only_folder_are_harmless(tmp_path, monkeypatch):
    path = tmp_path / "b"
    write_bundle(path, make_manifest(), FILES)
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


def test_bundle_that_cannot_be_moved_back_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "b"
    write_bundle(path, make_manifest(), FILES)
    path.rename(tmp_path / ".b.edge-attn.old")

    def fail(self, target):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(BundleError, match=r"cannot be moved back: .*Read-only file system"):
        Bundle.open(path)


def test_too_long_name_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError, match="cannot be read: File name too long"):
        Bundle.open(tmp_path / ("b" * 300))


# ---- names and what a replacement drops


@pytest.mark.parametrize(("name", "is_file"), [("en-fr.v2", False), ("1.0", False), ("b.ZIP", True)])
def test_other_names_are_folders_or_zips(tmp_path, name, is_file):
    write_bundle(tmp_path / name, make_manifest(), FILES)
    assert (tmp_path / name).is_file() is is_file
    Bundle.open(tmp_path / name)


def test_zip_with_a_top_folder_is_updated(tmp_path):
    write_bundle(tmp_path / "b", make_manifest(), FILES)
    path = Path(shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path, "b"))
    check_output(path, force=True)
    update_bundle(path, with_file("note"))
    assert Bundle.open(path).read("text/note") == b"note"


def test_targets_of_a_bundle_are_those_that_a_replacement_drops(path):
    assert targets_of(path) == ()
    target = Target("trt", "fp16", make_manifest().graphs)
    write_bundle(path, make_manifest(targets={"trt-fp16": target}), FILES)
    assert targets_of(path) == ("trt-fp16",)
