"""Files of a bundle in a folder or in a zip: read all of them, or write them one after another."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from edge_attn.errors import BundleError

DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)
"""Errors that zipfile raises for a truncated or changed zip, NotImplementedError for an unknown flag or version."""


def read_folder(path: Path) -> dict[str, bytes]:
    """Return the content of every file in the folder `path`, by name.

    Raises:
        BundleError: an entry is not a plain file, or cannot be read.
    """
    files = {}
    for folder, folders, names in os.walk(path):
        for name in [*folders, *names]:
            item = Path(folder, name)
            if item.is_symlink():
                raise BundleError(f"{path}: {item.relative_to(path)} is a link; a bundle contains plain files only")
        for name in names:
            item = Path(folder, name)
            try:
                if not item.is_file():
                    raise BundleError(f"{path}: {item.relative_to(path)} is not a plain file")
                files[item.relative_to(path).as_posix()] = item.read_bytes()
            except OSError as error:
                raise BundleError(f"{item} cannot be read: {error.strerror}") from error
    return files


def read_zip(path: Path) -> dict[str, bytes]:
    """Return the content of every file in the zip `path`, by name.

    Raises:
        BundleError: `path` is not a complete zip, or an entry is not a plain file.
    """
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                if item.is_dir():
                    continue
                if stat.S_ISLNK(item.external_attr >> 16):
                    raise BundleError(f"{path}: {item.filename} is a link; a bundle contains plain files only")
                if item.filename in files:
                    raise BundleError(f"{path}: {item.filename} is in the zip twice; export the bundle again")
                if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise BundleError(f"{path}: {item.filename} is compressed in a way that bundles do not use")
                files[item.filename] = archive.read(item)
    except PermissionError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except (*DAMAGED, OSError) as error:
        raise BundleError(
            f"{path} is not a bundle, or is damaged: it is neither a folder nor a complete zip ({error})"
        ) from error
    return files


def write_folder(contents: Iterable[tuple[str, bytes]], path: Path) -> None:
    """Write the (name, content) pairs `contents` as files of the folder `path`."""
    for name, data in contents:
        _write(path / name, data)


def write_zip(contents: Iterable[tuple[str, bytes]], path: Path) -> None:
    """Write the (name, content) pairs `contents` as the zip `path`. Equal contents give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in contents:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    _write(path, buffer.getvalue())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
