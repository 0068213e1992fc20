"""Replacement of a file or a folder: completely or not at all, one writer at a time.

    .<name>.edge-attn.<random>.partial    new content while it is written, or old content while it is removed
    .<name>.edge-attn.old                 the old folder, between the two renames that replace it
    .<name>.edge-attn.lock                exists while a process writes

In a folder that cannot be renamed, such as a mount point, they are inside of it: see fixed_folder.py. Stray files of a
folder that is replaced, such as .git, move to the new one.

A killed process leaves these files behind. The next reader or writer of a folder moves the old one back if nothing has
replaced it, and the next writer that holds the lock removes the rest.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_attn.storage import fixed_folder, locks
from edge_attn.storage.stray_files import is_stray


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the write lock of `path`, after other writers have released it and leftovers of killed ones are repaired.

    On a file system without locks no writer waits, but every write is still complete.

    Raises:
        OSError: the parent folder can be neither written nor created, or a leftover cannot be repaired.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.file_lock(_sibling(path, "lock")) as locked:
        if locked:
            remove_leftovers(path)
            _restore(path)
        yield


@contextlib.contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary sibling, which replaces `path` when the block ends without an error.

    The block creates a file or a folder there. It is flushed to the disk and takes over the mode of what it replaces.

    Raises:
        OSError: `path` cannot be replaced. It is unchanged, or is restored the next time that it is read.
    """
    temporary = _sibling(path, f"{os.urandom(4).hex()}.partial")
    try:
        yield temporary
        _flush(temporary)
        if path.exists() and path.is_dir() == temporary.is_dir():
            shutil.copymode(path, temporary)
        _swap(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Replace `path` by the file or folder that `write` creates at the temporary path that it receives.

    Raises:
        OSError: `path` cannot be replaced. It is unchanged, or is restored the next time that it is read.
    """
    with replacement(path) as temporary:
        write(temporary)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file `path` by `data`. Parent folders are created.

    Raises:
        OSError: the file cannot be written. It is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacement(path) as temporary:
        temporary.write_bytes(data)


def restore_interrupted(path: Path) -> None:
    """Move back the folder that a killed writer moved away from `path`. Waits for a writer that still runs.

    Raises:
        OSError: the folder cannot be moved back.
    """
    if not is_being_replaced(path):
        return
    real_path = Path(os.path.realpath(path))
    try:
        with exclusive_lock(real_path):
            pass
    except OSError:
        if not real_path.exists():
            raise


def is_being_replaced(path: Path) -> bool:
    """Return whether a writer is replacing the folder `path`, or was killed while it did."""
    try:
        real_path = Path(os.path.realpath(path))
        return fixed_folder.is_interrupted(real_path) or _sibling(real_path, "old").exists()
    except (OSError, ValueError):  # an unreadable parent, or a string that is no path
        return False


def leftovers(path: Path) -> list[Path]:
    """Return the partial files or folders that running or killed writers of `path` have created."""
    beside = path.parent.glob(f".{glob.escape(path.name)}.edge-attn.*.partial")
    inside = path.glob(".edge-attn.*.partial") if path.is_dir() else ()
    return [*beside, *inside]


def remove_leftovers(path: Path) -> None:
    """Remove the `leftovers` of `path`, as far as possible. Only for its single writer, or under its lock."""
    for partial in leftovers(path):
        with contextlib.suppress(OSError):
            _remove(partial)


def _sibling(path: Path, suffix: str) -> Path:
    if fixed_folder.is_fixed(path):
        return path / f".edge-attn.{suffix}"
    return path.with_name(f".{path.name}.edge-attn.{suffix}")


def _flush(path: Path) -> None:
    """Flush every file at or under `path` to the disk, because a rename can get there before the content does."""
    for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _swap(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`. The old content of `path` is at `temporary` afterwards, or removed.

    A file is replaced in one step. Between the two renames of folders `path` is missing, see `restore_interrupted`.
    """
    if temporary.parent == path:
        fixed_folder.swap_content(temporary, path)
        return
    if not path.exists() or not (path.is_dir() or temporary.is_dir()):
        _rename_file(temporary, path)
        return
    old = _sibling(path, "old")
    path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    _keep_stray_files(old, path)
    old.rename(temporary)


def _rename_file(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`, or write its content into a file that is mounted there."""
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno != errno.EBUSY or not path.is_file():
            raise
        shutil.copyfile(temporary, path)


def _restore(path: Path) -> None:
    """Undo what a killed writer of the folder `path` has begun, or end what it has completed."""
    fixed_folder.restore_content(path)
    old = _sibling(path, "old")
    if old.exists() and path.exists():
        _keep_stray_files(old, path)
        _remove(old)
    elif old.exists():
        old.rename(path)


def _keep_stray_files(old: Path, path: Path) -> None:
    """Move the stray files of a replaced folder, such as .git, to the new one."""
    if not (old.is_dir() and path.is_dir()):
        return
    for entry in old.iterdir():
        if is_stray(entry.name) and not os.path.lexists(path / entry.name):
            entry.rename(path / entry.name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
