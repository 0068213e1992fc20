"""Files are replaced completely or not at all; replaced folders are tested with bundles in test_writer.py."""

from __future__ import annotations

import errno
import os
import stat
import threading

import pytest

from edge_attn.storage.atomic import exclusive_lock, leftovers, replace_atomically, write_bytes


def test_file_is_written_with_its_parent_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_bytes(path, b"first")
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert [item.name for item in path.parent.iterdir()] == ["file"]


def test_replaced_file_keeps_its_mode(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"first")
    path.chmod(0o600)
    write_bytes(path, b"second")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_content_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    path, flushed, fsync = tmp_path / "file", [], os.fsync

    def record(handle: int) -> None:
        flushed.append((os.fstat(handle).st_size, path.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    write_bytes(path, b"data")
    assert flushed == [(4, False)]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"first")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"first")

    def interrupted(temporary) -> None:
        temporary.write_bytes(b"second")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_atomically(path, interrupted)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_next_writer_removes_what_a_kill_left(tmp_path):
    path = tmp_path / "file"
    for name in (".file.edge-attn.0a1b2c3d.partial", ".file.edge-attn.lock", ".file2.edge-attn.0a1b2c3d.partial"):
        (tmp_path / name).write_bytes(b"half")
    assert [item.name for item in leftovers(path)] == [".file.edge-attn.0a1b2c3d.partial"]
    with exclusive_lock(path):
        write_bytes(path, b"data")
    assert {item.name for item in tmp_path.iterdir()} == {"file", ".file2.edge-attn.0a1b2c3d.partial"}


def test_writers_wait_for_each_other(tmp_path):
    path = tmp_path / "counter"
    write_bytes(path, b"0")

    def count() -> None:
        for _ in range(20):
            with exclusive_lock(path):
                number = int(path.read_bytes()) + 1
                write_bytes(path, b"%d" % number)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == b"60"
