"""Replacement of the content of a folder that cannot be renamed: a mount point, or one in a read-only folder.

    .edge-attn.<random>.partial/    new content while it is written, or old content while it is removed
    .edge-attn.moving/              old entries, while they are moved away one by one
    .edge-attn.old/                 all old entries, while the new ones are moved in

These folders are inside of the folder, on its own file system. Stray files stay where they are.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from edge_attn.storage.stray_files import is_stray

MOVING, OLD = ".edge-attn.moving", ".edge-attn.old"
MOUNTS = Path("/proc/self/mountinfo")


def is_fixed(path: Path) -> bool:
    """Return whether `path` is a folder that cannot be renamed."""
    return path.is_dir() and (_is_mount_point(path) or not os.access(path.parent, os.W_OK | os.X_OK))


def swap_content(new: Path, path: Path) -> None:
    """Replace the entries of the folder `path` by those of the folder `new` in it, which has the old ones afterwards.

    Raises:
        OSError: they cannot be replaced. The old ones are back, or come back with `restore_content`.
    """
    moving, old = path / MOVING, path / OLD
    moving.mkdir()
    try:
        _move_entries(path, moving)
        moving.rename(old)
        _move_entries(new, path)
    except BaseException:
        restore_content(path)
        raise
    new.rmdir()
    old.rename(new)


def is_interrupted(path: Path) -> bool:
    """Return whether a writer is replacing the content of the folder `path`, or was killed while it did."""
    return (path / MOVING).is_dir() or (path / OLD).is_dir()


def restore_content(path: Path) -> None:
    """Move back the entries that a killed or failed writer moved away.

    Raises:
        OSError: they cannot be moved back.
    """
    moving, old = path / MOVING, path / OLD
    if old.is_dir():  # every entry of `path` is a new one
        for entry in _entries(path):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        old.rename(moving)
    if moving.is_dir():
        _move_entries(moving, path)
        moving.rmdir()


def _move_entries(source: Path, target: Path) -> None:
    for entry in _entries(source):
        entry.rename(target / entry.name)


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not is_stray(entry.name))


def _is_mount_point(path: Path) -> bool:
    """Return whether something is mounted at `path`, as far as the system tells."""
    if os.path.ismount(path):  # does not know a folder that is bound from the same file system
        return True
    try:
        lines = MOUNTS.read_bytes().splitlines()
    except OSError:
        return False
    points = (line.split(b" ")[4] for line in lines)
    name = os.fsencode(os.path.realpath(path))
    return any(re.sub(rb"\\(\d{3})", lambda code: bytes([int(code[1], 8)]), point) == name for point in points)
