"""A place on the disk where a file or a folder is put whole or not at all, by one writer at a time.

    .<name>.edge-attn.<random>.partial    what is being written, or being removed
    .<name>.edge-attn.old                 what was there, between the renames that replace a folder

A kill leaves these behind. The next writer of the place removes the first kind, and puts the second one back.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Alone with the place `path`: whoever else writes into its folder waits. What a kill left there is put right.

    A file system that locks no folder, as NFS, keeps nobody waiting; what is put there is whole all the same.

    Raises:
        OSError: the folder can be neither read nor made, or what is left cannot be put right.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _locked(handle):
            for left in path.parent.glob(f".{glob.escape(path.name)}.edge-attn.*.partial"):
                with contextlib.suppress(OSError):
                    _remove(left)
        old = old_of(path)
        if old.exists():
            _remove(old) if path.exists() else old.rename(path)
        yield
    finally:
        os.close(handle)


def put(path: Path, write: Callable[[Path], None]) -> None:
    """Puts what `write` makes, at the path that it is given, in the place of what is at `path`.

    Raises:
        OSError: it cannot be; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.edge-attn.{os.urandom(4).hex()}.partial")
    try:
        write(temporary)
        _swap(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)


def restore(path: Path) -> None:
    """Puts back what a writer took away from `path` that was killed; waits for one that is still at it.

    Raises:
        OSError: it cannot be put back.
    """
    if path.exists():
        return
    place = Path(os.path.realpath(path))
    if old_of(place).exists():
        with alone(place):
            pass


def old_of(path: Path) -> Path:
    """Where what was at `path` lies while a folder is replaced."""
    return path.with_name(f".{path.name}.edge-attn.old")


def _locked(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _swap(temporary: Path, path: Path) -> None:
    """Puts `temporary` at `path`; afterwards what was there is at `temporary`, or gone.

    One file replaces another at once. Between the renames of folders there is nothing at `path`: see `restore`.
    """
    if not path.exists() or not (path.is_dir() or temporary.is_dir()):
        temporary.rename(path)
        return
    old = old_of(path)
    path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    old.rename(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
