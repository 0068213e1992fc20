"""Locks exclude other processes on every file system and with lock files of other users."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from edge_attn.storage import locks


def test_locked_file_excludes_other_holders(tmp_path):
    path, waits = tmp_path / "lock", []
    with locks.file_lock(path, blocking=False) as locked:
        assert locked
        assert locks.is_locked(path)
        with pytest.raises(BlockingIOError), locks.file_lock(path, blocking=False):
            pass

        def give_up() -> None:
            waits.append(path)
            raise TimeoutError

        with pytest.raises(TimeoutError), locks.file_lock(path, on_wait=give_up):
            pass
    assert waits == [path]
    assert not path.exists()
    assert not locks.is_locked(path)


HOLD = """
import sys
from pathlib import Path
from edge_attn.storage.locks import file_lock
with file_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_killed_process_releases_its_lock(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        assert locks.is_locked(path)
        process.kill()
    assert path.exists()
    with locks.file_lock(path, blocking=False) as locked:
        assert locked
    assert not path.exists()


def test_lock_file_removed_while_waiting_is_opened_again(tmp_path):
    """A waiter gets the lock of a file that its holder has removed, which excludes no other process."""
    path = tmp_path / "lock"
    first = locks.file_lock(path)
    first.__enter__()
    with locks.file_lock(path, on_wait=lambda: first.__exit__(None, None, None)):
        assert locks.is_locked(path)


def test_lock_over_nfs_is_opened_for_writing(tmp_path, monkeypatch):
    """NFS refuses an exclusive lock on a file that is open for reading."""

    def flock(handle: int, kind: int, real=fcntl.flock) -> None:
        if kind & fcntl.LOCK_EX and fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(handle, kind)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with locks.file_lock(tmp_path / "lock", blocking=False) as locked:
        assert locked
        assert locks.is_locked(tmp_path / "lock")


def test_read_only_file_of_another_user_is_locked(tmp_path, monkeypatch):
    """The package filelock raises PermissionError here."""
    path = tmp_path / "lock"
    path.touch()

    def read_only(name, flags, *mode, real=os.open):
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(name, flags, *mode)

    monkeypatch.setattr(locks.os, "open", read_only)
    with locks.file_lock(path, blocking=False) as locked:
        assert locked
        assert locks.is_locked(path)


def test_file_system_without_locks_does_not_block(tmp_path, monkeypatch):
    """The package filelock raises OSError here."""

    def flock(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with locks.file_lock(tmp_path / "lock") as first, locks.file_lock(tmp_path / "lock") as second:
        assert (first, second) == (False, False)
