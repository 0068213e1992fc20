"""One process at a time: a lock is a file, and it is free as soon as the process that holds it has ended, however."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def alone(path: Path, waits: Callable[[], None] | None) -> Iterator[bool]:
    """Holds the lock at `path`, whoever's file it is; nothing is written to it, and it is removed at the end.

    `waits` is called if another process is there first. Gives False on a file system without locks, where nobody waits.

    Raises:
        BlockingIOError: another process is there, and `waits` is None.
        OSError: there can be no such file.
    """
    while True:
        handle = _open(path)
        try:
            held = _lock(handle, waits)
            if not _is_still(path, handle):
                continue  # whoever held it has removed it, so somebody else may hold a newer one
            try:
                yield held
            finally:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            return
        finally:
            os.close(handle)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock now."""
    try:
        handle = _open(path, make=False)
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


def _lock(handle: int, waits: Callable[[], None] | None) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waits is None:
            raise
        waits()
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _open(path: Path, make: bool = True) -> int:
    """For writing, without which NFS locks nothing alone; another user's file may be open for reading only."""
    try:
        return os.open(path, os.O_RDWR)
    except PermissionError:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # asked for on its own: some folders refuse it of another user's file
        if not make:
            raise
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
