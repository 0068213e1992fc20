"""Locks between processes: a lock is a file, and the system releases it when the process that holds it ends.

Unlike the package `filelock`, these locks accept the read-only lock file of another user and a file system that refuses
locks, and they leave no file behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def file_lock(path: Path, blocking: bool = True, on_wait: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold the lock `path`, an empty file that is removed at the end. Another user may own the file.

    Yields True, or False on a file system without locks, where no process waits.

    Args:
        path: the lock file.
        blocking: whether to wait for another process that holds the lock.
        on_wait: called once before a wait.

    Raises:
        BlockingIOError: another process holds the lock, and `blocking` is False.
        OSError: the lock file cannot be created.
    """
    while True:
        handle = _open(path)
        try:
            locked = _lock(handle, blocking, on_wait)
            if not _is_current(path, handle):
                continue  # the last holder removed this file, so another process may hold a newer one
            try:
                yield locked
            finally:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            return
        finally:
            os.close(handle)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock now."""
    try:
        handle = _open(path, create=False)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _lock(handle: int, blocking: bool, on_wait: Callable[[], None]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not blocking:
            raise
        on_wait()
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _open(path: Path, create: bool = True) -> int:
    """Open for writing, which NFS needs for an exclusive lock, or else for reading, as another user's file allows."""
    try:
        return os.open(path, os.O_RDWR)
    except PermissionError:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # O_CREAT comes second: a sticky folder refuses it for another user's file
        if not create:
            raise
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _is_current(path: Path, handle: int) -> bool:
    """Return whether `path` is still the file that was opened as `handle`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
