"""One process at a time: a lock is a file, and it is free as soon as the process that holds it has ended, however."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def alone(path: Path, waits: Callable[[], None] | None) -> Iterator[None]:
    """Holds the lock at `path`, whoever's file it is; nothing is written to it, and it is removed at the end.

    `waits` is called if another process is there first.

    Raises:
        BlockingIOError: another process is there, and `waits` is None.
        OSError: there can be no such file.
    """
    with contextlib.ExitStack() as stack:
        while True:
            handle = _open(path)
            closing = stack.enter_context(contextlib.ExitStack())
            closing.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waits is None:
                    raise
                waits()
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_still(path, handle):
                break
            closing.close()  # whoever held it has removed it, so somebody else may hold a newer one
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock now."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _open(path: Path) -> int:
    """Another user's file may be opened for reading, and in some folders only if it is not also asked to be made."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
