"""Write a bundle whole or not at all, one writer at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from edge_attn.bundle.archive import DAMAGED, write_folder, write_zip
from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import MANIFEST, FileEntry, Manifest
from edge_attn.errors import InputError
from edge_attn.storage.atomic import exclusive_lock, replace_atomically, restore_interrupted


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes], force: bool = False) -> Manifest:
    """Writes a bundle at `path` (a zip if it ends in .zip), the manifest last, whole or not at all.

    Raises:
        InputError: `path` exists and `force` is not given, or cannot be written; nothing half-written is left.
        BundleError: a graph's file is not among `files`.
    """
    check_output(path, force)
    manifest = _listing(path, manifest, files)
    with _alone(path) as place:
        check_output(path, force)  # another may have written there meanwhile
        _put(place, manifest, files, path.suffix == ".zip")
    return manifest


def update_bundle(path: Path, change: Callable[[Bundle], tuple[Manifest, Mapping[str, bytes]]]) -> Manifest:
    """Writes the bundle at `path` with the manifest and the files that `change` makes of it, in the form that it has.

    Whoever else writes there waits from before it is read until it is written.

    Raises:
        InputError: it cannot be written; it is as it was.
        BundleError: it is no bundle, or a graph's file is not among the files.
    """
    with _alone(path) as place:
        manifest, files = change(Bundle.open(place))
        manifest = _listing(path, manifest, files)
        _put(place, manifest, files, place.is_file())
    return manifest


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Alone with the place that `path` leads to.

    Raises:
        InputError: it cannot be written.
    """
    try:
        place = Path(os.path.realpath(path))
        with exclusive_lock(place):
            yield place
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def _listing(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    """The manifest with an entry for each of `files`.

    Raises:
        ConfigError: a name leaves the bundle.
        BundleError: a graph's file is not among them.
    """
    entries = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(files.items())}
    manifest = dataclasses.replace(manifest, files=entries)
    manifest.check_graphs(path)
    return manifest


def _put(place: Path, manifest: Manifest, files: Mapping[str, bytes], zipped: bool) -> None:
    content = (json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    contents = [*sorted(files.items()), (MANIFEST, content)]
    replace_atomically(place, functools.partial(write_zip if zipped else write_folder, contents))


def check_output(path: Path, force: bool, size: int = 0) -> None:
    """Refuses a `path` that must not be written over, or cannot be written; asked before long work and again before
    writing. `size` bytes must be free there.

    Raises:
        InputError: what is at `path` stays there.
    """
    try:
        place = Path(os.path.realpath(path))
        restore_interrupted(place)
        if place.exists() and not force:
            raise InputError(f"{path} exists; choose another --out, or give --force to replace it")
        if place.exists() and not _replaceable(place):
            raise InputError(f"{path} exists and is not a bundle, so --force does not replace it; choose another --out")
        folder = next(parent for parent in (*place.parents, place) if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    if free < size:
        raise InputError(
            f"{path} cannot be written: {free / 1e6:.1f} MB are free in {folder}, it needs {size / 1e6:.1f} MB"
        )


def _replaceable(path: Path) -> bool:
    """A bundle, whole or not, or an empty folder."""
    if path.is_dir():
        return (path / MANIFEST).is_file() or not any(path.iterdir())
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (*DAMAGED, OSError):
        return False
