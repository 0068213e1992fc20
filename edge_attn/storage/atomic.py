"""A place on the disk where a file or a folder is put whole or not at all, by one writer at a time.

    .<name>.edge-attn.<random>.partial    what is being written, or being removed
    .<name>.edge-attn.old                 what was there, between the renames that replace a folder
    .<name>.edge-attn.lock                while somebody writes

A kill leaves these behind. Whoever writes or reads next puts back what was there, where nothing took its place; the
next writer removes the rest.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_attn.storage import locks


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Alone with the place `path`: whoever else writes there waits. What a kill left there is put right.

    On a file system without locks nobody waits; what is put there is whole all the same.

    Raises:
        OSError: the folder can be neither written nor made, or what is left cannot be put right.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.alone(path.with_name(f".{path.name}.edge-attn.lock"), lambda: None) as held:
        if held:
            for left in path.parent.glob(f".{glob.escape(path.name)}.edge-attn.*.partial"):
                with contextlib.suppress(OSError):
                    _remove(left)
            old = _old(path)
            if old.exists():
                _remove(old) if path.exists() else old.rename(path)
        yield


def put(path: Path, write: Callable[[Path], None]) -> None:
    """Puts what `write` makes, at the path that it is given, in the place of what is at `path`, whose mode it takes on.

    Raises:
        OSError: it cannot be; `path` is as it was, or will be as soon as it is read again.
    """
    temporary = path.with_name(f".{path.name}.edge-attn.{os.urandom(4).hex()}.partial")
    try:
        write(temporary)
        if path.exists() and path.is_dir() == temporary.is_dir():
            shutil.copymode(path, temporary)
        _swap(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)


def restore(path: Path) -> None:
    """Puts back what a writer took away from `path` that was killed; waits for one that is still at it.

    Raises:
        OSError: it cannot be put back.
    """
    if not is_being_replaced(path):
        return
    place = Path(os.path.realpath(path))
    try:
        with alone(place):
            pass
    except OSError:
        if not place.exists():
            raise


def is_being_replaced(path: Path) -> bool:
    """Whether a folder is on its way to `path`, or was when its writer was killed."""
    try:
        return _old(Path(os.path.realpath(path))).exists()
    except (OSError, ValueError):  # where nobody may look, or that is no path, there is none
        return False


def _old(path: Path) -> Path:
    """Where what was at `path` lies while a folder is replaced."""
    return path.with_name(f".{path.name}.edge-attn.old")


def _swap(temporary: Path, path: Path) -> None:
    """Puts `temporary` at `path`; afterwards what was there is at `temporary`, or gone.

    One file replaces another at once. Between the renames of folders there is nothing at `path`: see `restore`.
    """
    if not path.exists() or not (path.is_dir() or temporary.is_dir()):
        temporary.rename(path)
        return
    old = _old(path)
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
