"""Writing of bundles: completely or not at all, one writer at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from edge_attn.bundle.archive import is_zip_with, write_folder, write_zip
from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import MANIFEST, FileEntry, Manifest
from edge_attn.errors import InputError
from edge_attn.storage.atomic import exclusive_lock, replace_atomically, restore_interrupted
from edge_attn.storage.fixed_folder import is_fixed
from edge_attn.storage.stray_files import is_stray


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes], force: bool = False) -> Manifest:
    """Write a bundle completely or not at all, and return its manifest with the list of files.

    Args:
        path: the bundle to write, a zip if it ends in .zip.
        manifest: the manifest. Its `files` are computed.
        files: the content of every file except the manifest, by name.
        force: whether to replace an existing bundle.

    Raises:
        InputError: `path` exists and `force` is False, or `path` cannot be written. No partial bundle is left.
        BundleError: a graph's file is not among `files`.
        ConfigError: a file name leaves the bundle.
    """
    check_output(path, force)
    manifest = list_files(path, manifest, files)
    with _lock(path) as real_path:
        check_output(path, force)  # another process may have written there meanwhile
        _write(real_path, manifest, files, path.suffix.lower() == ".zip")
    return manifest


def update_bundle(path: Path, change: Callable[[Bundle], tuple[Manifest, Mapping[str, bytes]]]) -> Manifest:
    """Replace the bundle `path` by the manifest and files that `change` returns for it, and return the manifest.

    A folder stays a folder, and a zip a zip. Other writers wait from before the read until after the write.

    Raises:
        InputError: the bundle cannot be written. It is unchanged.
        BundleError: `path` is not a bundle, or a graph's file is not among the files.
    """
    with _lock(path) as real_path:
        manifest, files = change(Bundle.open(real_path))
        manifest = list_files(path, manifest, files)
        _write(real_path, manifest, files, real_path.is_file())
    return manifest


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[Path]:
    """Hold the write lock of the file or folder that `path` resolves to, and yield its path.

    Raises:
        InputError: `path` cannot be written.
    """
    try:
        real_path = Path(os.path.realpath(path))
        with exclusive_lock(real_path):
            yield real_path
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def list_files(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    """Return the manifest with the hash and size of each of `files`.

    Raises:
        ConfigError: a file name leaves the bundle.
        BundleError: a graph's file is not among `files`.
    """
    entries = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(files.items())}
    manifest = dataclasses.replace(manifest, files=entries)
    manifest.check_graphs(path)
    return manifest


def _write(path: Path, manifest: Manifest, files: Mapping[str, bytes], as_zip: bool) -> None:
    content = (json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    contents = [*sorted(files.items()), (MANIFEST, content)]
    replace_atomically(path, functools.partial(write_zip if as_zip else write_folder, contents))


def check_output(path: Path, force: bool, size: int = 0) -> None:
    """Check that a bundle can be written to `path`. Callers check before long work and again before writing.

    Args:
        path: the bundle to write.
        force: whether to replace an existing bundle.
        size: number of bytes that must be free.

    Raises:
        InputError: `path` exists and `force` is False, or is not a bundle, or cannot be written.
    """
    try:
        real_path = Path(os.path.realpath(path))
        restore_interrupted(real_path)
        if real_path.exists() and not force:
            raise InputError(f"{path} exists; choose another `out`, or add `force` to replace it")
        if real_path.exists() and not _is_replaceable(real_path):
            raise InputError(f"{path} exists and is not a bundle, so `force` does not replace it; choose another `out`")
        folder = next(parent for parent in (*real_path.parents, real_path) if parent.exists())
        folder = real_path if is_fixed(real_path) else folder
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    if free < size:
        raise InputError(
            f"{path} cannot be written: {free / 1e6:.1f} MB are free in {folder}, it needs {size / 1e6:.1f} MB"
        )


def _is_replaceable(path: Path) -> bool:
    """Return whether `path` is a bundle, complete or not, or a folder that is empty but for stray files."""
    if path.is_dir():
        return (path / MANIFEST).is_file() or all(is_stray(item.name) for item in path.iterdir())
    return is_zip_with(path, MANIFEST)


def targets_of(path: Path) -> tuple[str, ...]:
    """Return the names of the optimized targets that a replacement of `path` drops; none if it is not a bundle."""
    try:
        return tuple(Bundle.open(path).manifest.targets)
    except InputError:
        return ()
