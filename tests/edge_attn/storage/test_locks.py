"""A lock keeps others waiting, wherever its file lies and whoever's it is."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from edge_attn.storage import locks


def test_whoever_is_there_first_keeps_the_others_out(tmp_path):
    path, waited = tmp_path / "lock", []
    with locks.alone(path, None) as held:
        assert held
        assert locks.is_held(path)
        with pytest.raises(BlockingIOError), locks.alone(path, None):
            pass

        def wait() -> None:
            waited.append(path)
            raise TimeoutError

        with pytest.raises(TimeoutError), locks.alone(path, wait):
            pass
    assert waited == [path]
    assert not path.exists()
    assert not locks.is_held(path)


def test_over_nfs_it_is_open_for_writing(tmp_path, monkeypatch):
    """There a lock that lets nobody else in asks for that."""

    def flock(handle: int, kind: int, real=fcntl.flock) -> None:
        if kind & fcntl.LOCK_EX and fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(handle, kind)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with locks.alone(tmp_path / "lock", None) as held:
        assert held
        assert locks.is_held(tmp_path / "lock")


def test_another_users_file_is_a_lock_too(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    path.touch()

    def may_only_read(name, flags, *mode, real=os.open):
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(name, flags, *mode)

    monkeypatch.setattr(locks.os, "open", may_only_read)
    with locks.alone(path, None) as held:
        assert held
        assert locks.is_held(path)


def test_where_there_are_no_locks_nobody_waits(tmp_path, monkeypatch):
    def flock(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with locks.alone(tmp_path / "lock", None) as first, locks.alone(tmp_path / "lock", None) as second:
        assert (first, second) == (False, False)
