"""A bundle that is a mount point is replaced inside of it; stray files of a folder outlive a replacement."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_files import FILES, make_manifest
from paths import TESTS

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import check_output, update_bundle, write_bundle
from edge_attn.errors import InputError
from edge_attn.storage import fixed_folder
from edge_attn.storage.fixed_folder import is_fixed

OTHER = {**FILES, "MODEL_CARD.md": b"another"}
ADDED = {**FILES, "targets/note": b"another"}


def entries(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


@pytest.fixture
def mount(tmp_path, monkeypatch) -> Path:
    """Return a bundle in a folder that is reported as a mount point: its renames fail."""
    path, rename = tmp_path / "mount", Path.rename
    write_bundle(path, make_manifest(), FILES)

    def busy(self: Path, target: Path) -> Path:
        if path in (self, target):
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(fixed_folder, "_is_mount_point", lambda item: item == path)
    monkeypatch.setattr(Path, "rename", busy)
    return path


def test_mounted_bundle_is_replaced(mount):
    inode, before = mount.stat().st_ino, entries(mount)
    (mount / "lost+found").mkdir()  # codespell:ignore found
    write_bundle(mount, make_manifest(), ADDED, force=True)
    assert Bundle.open(mount).files() == ADDED
    update_bundle(mount, lambda bundle: (bundle.manifest, OTHER))
    assert Bundle.open(mount).files() == OTHER
    assert mount.stat().st_ino == inode
    assert entries(mount) == sorted([*before, "lost+found"])  # codespell:ignore found
    assert entries(mount.parent) == ["mount"]


def test_empty_mount_receives_a_bundle(mount):
    shutil.rmtree(mount)
    (mount / "lost+found").mkdir(parents=True)  # codespell:ignore found
    check_output(mount, force=True, size=1000)
    write_bundle(mount, make_manifest(), FILES, force=True)
    assert Bundle.open(mount).files() == FILES


@pytest.mark.parametrize("calls", range(12))
def test_failed_rename_restores_the_mounted_bundle(mount, monkeypatch, calls):
    rename, count = Path.rename, 0

    def fail(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == calls:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    try:
        write_bundle(mount, make_manifest(), OTHER, force=True)
        expected = OTHER
    except InputError:
        expected = FILES
    assert Bundle.open(mount).files() == expected
    assert not [name for name in entries(mount) if name.startswith(".")]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from bundle_files import FILES, make_manifest
from edge_attn.bundle.writer import write_bundle
from edge_attn.storage import fixed_folder
path, left, rename = Path(sys.argv[1]), int(sys.argv[2]), Path.rename
fixed_folder._is_mount_point = lambda item: item == path
def counted(self, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = counted
write_bundle(path, make_manifest(), {{**FILES, "MODEL_CARD.md": b"another"}}, force=True)
"""


@pytest.mark.parametrize("calls", [0, 1, 4, 5, 6, 8, 9])
def test_kill_while_replacing_never_loses_the_mounted_bundle(mount, monkeypatch, calls):
    code = KILLED.format(tests=str(TESTS / "support"))
    result = subprocess.run([sys.executable, "-c", code, str(mount), str(calls)], capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert Bundle.open(mount).files() == FILES
    write_bundle(mount, make_manifest(), OTHER, force=True)
    assert Bundle.open(mount).files() == OTHER
    assert not [name for name in entries(mount) if name.startswith(".")]


def test_bundle_replaced_during_a_read_of_a_mount_is_read_again(mount, monkeypatch):
    read = Path.read_bytes

    def replaced(self: Path) -> bytes:
        if self.name == "encoder.onnx":  # after the manifest
            monkeypatch.setattr(Path, "read_bytes", read)
            write_bundle(mount, make_manifest(), {**FILES, "graphs/encoder.onnx": b"another"}, force=True)
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", replaced)
    assert Bundle.open(mount).read("graphs/encoder.onnx") == b"another"


def test_folder_in_a_folder_that_is_not_writable_is_fixed(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    assert not is_fixed(tmp_path / "b")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert is_fixed(tmp_path / "b")
    assert not is_fixed(tmp_path / "absent")


def test_mount_points_are_read_from_the_system(tmp_path, monkeypatch):
    (tmp_path / "a b").mkdir()
    line = f"36 35 98:0 /real {tmp_path}/a\\040b rw,noatime shared:1 - ext4 /dev/root rw\n"
    (tmp_path / "mountinfo").write_text(line)
    monkeypatch.setattr(fixed_folder, "MOUNTS", tmp_path / "mountinfo")
    assert is_fixed(tmp_path / "a b")
    assert not is_fixed(tmp_path)


def test_mounted_zip_is_written_in_place(tmp_path, monkeypatch):
    path, rename = tmp_path / "b.zip", Path.rename
    write_bundle(path, make_manifest(), FILES)
    inode = path.stat().st_ino

    def busy(self: Path, target: Path) -> Path:
        if target == path:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", busy)
    write_bundle(path, make_manifest(), OTHER, force=True)
    assert Bundle.open(path).files() == OTHER
    assert path.stat().st_ino == inode
    assert entries(tmp_path) == ["b.zip"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_real_mount_is_replaced(tmp_path):
    write_bundle(tmp_path / "real", make_manifest(), FILES)
    (tmp_path / "mount").mkdir()
    code = (
        "import sys; from pathlib import Path; from edge_attn.bundle.writer import update_bundle\n"
        "update_bundle(Path(sys.argv[1]), lambda b: (b.manifest, {**b.files(), 'MODEL_CARD.md': b'another'}))"
    )
    script = 'mount --bind "$1" "$2" && exec "$3" -c "$4" "$2"'
    arguments = [str(tmp_path / "real"), str(tmp_path / "mount"), sys.executable, code]
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Operation not permitted" in result.stderr:
        pytest.skip("this container may not mount")
    assert result.returncode == 0, result.stderr
    assert Bundle.open(tmp_path / "real").files() == OTHER


# ---- stray files


def test_stray_files_outlive_a_replacement(tmp_path):
    path = tmp_path / "b"
    write_bundle(path, make_manifest(), FILES)
    for name in (".git/config", "README.md", ".gitattributes"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("of the user")
    update_bundle(path, lambda bundle: (bundle.manifest, OTHER))
    write_bundle(path, make_manifest(), OTHER, force=True)
    assert Bundle.open(path).files() == OTHER
    for name in (".git/config", "README.md", ".gitattributes"):
        assert (path / name).read_text() == "of the user"


def test_stray_files_outlive_a_kill(tmp_path):
    """Killed after both renames, before the stray files were moved."""
    path = tmp_path / "b"
    write_bundle(path, make_manifest(), FILES)
    shutil.copytree(path, tmp_path / ".b.edge-attn.old")
    (tmp_path / ".b.edge-attn.old" / ".git").mkdir()
    assert Bundle.open(path).files() == FILES
    assert (path / ".git").is_dir()
    assert entries(tmp_path) == ["b"]
