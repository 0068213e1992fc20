"""Files of a bundle in a folder or in a zip: read the listed ones, or write them one after another."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from edge_attn.errors import BundleError, quoted
from edge_attn.storage.stray_files import is_stray

DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error),
    *(MemoryError, OverflowError, IndexError),
)
"""Errors that zipfile raises for a truncated or changed zip, NotImplementedError for an unknown flag or version."""


class Archive(Protocol):
    """The files of a folder or a zip, by their names in the bundle."""

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if there is none of this name.

        Raises:
            BundleError: it is not a file, or cannot be read.
        """

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            BundleError: it cannot be read, or is damaged.
        """

    def unlisted(self, listed: Iterable[str]) -> str | None:
        """Return the name of a file that is neither in `listed` nor stray, or None."""


class Folder:
    """The files of a folder. Links are followed, as a model hub's cache and a mounted volume consist of them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def size(self, name: str) -> int | None:
        item = self.path / name
        try:
            status = item.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise BundleError(f"{item} cannot be read: {getattr(error, 'strerror', error)}") from error
        if not stat.S_ISREG(status.st_mode):  # a read of a named pipe would never return
            raise BundleError(f"{self.path}: {name} is not a plain file")
        return status.st_size

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path / name} cannot be read: {error.strerror}") from error

    def unlisted(self, listed: Iterable[str]) -> str | None:
        known = set(listed)
        folders = {str(parent) for name in known for parent in PurePosixPath(name).parents}
        for root, subfolders, names in os.walk(self.path):
            relative = Path(root).relative_to(self.path)
            for name in sorted(names + [folder for folder in subfolders if Path(root, folder).is_symlink()]):
                item = (relative / name).as_posix()
                if item not in known and item not in folders and not is_stray(item):
                    return item
            subfolders[:] = [folder for folder in subfolders if not is_stray(folder)]
        return None


class Zip:
    """The files of a zip, which may have one folder around the bundle, and backslashes as separators."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, manifest: str) -> None:
        """Read the names.

        Args:
            path: the zip, for messages.
            archive: the opened zip.
            manifest: name of the file that is at the top of the bundle.

        Raises:
            BundleError: a name occurs twice, or several folders have a manifest.
        """
        self.path, self._archive = path, archive
        self._items: dict[str, zipfile.ZipInfo] = {}
        items = [(_normal(item.filename), item) for item in archive.infolist()]
        items = [(name, item) for name, item in items if not name.endswith("/")]
        tops = sorted({name[: -len(manifest)] for name, _ in items if _is_manifest(name, manifest)})
        tops.sort(key=len)
        top = tops[0] if tops else ""
        if len(tops) > 1 and top:
            raise BundleError(f"{path} has several bundles: {quoted(tops[0])} and {quoted(tops[1])}; unpack it first")
        for name, item in items:
            inner = name[len(top) :] if name.startswith(top) else f"../{name}"
            if is_stray(inner) and inner != manifest:
                continue
            if inner in self._items:
                raise BundleError(f"{path}: {item.filename} is in the zip twice; export the bundle again")
            self._items[inner] = item

    def size(self, name: str) -> int | None:
        item = self._items.get(name)
        if item is None:
            return None
        if stat.S_ISLNK(item.external_attr >> 16):
            raise BundleError(f"{self.path}: {item.filename} is a link; a zip of a bundle contains plain files only")
        if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleError(f"{self.path}: {item.filename} is compressed in a way that bundles do not use")
        return item.file_size

    def read(self, name: str) -> bytes:
        return self._archive.read(self._items[name])

    def unlisted(self, listed: Iterable[str]) -> str | None:
        return min(self._items.keys() - set(listed), default=None)


def _normal(name: str) -> str:
    """Return a name with `/` between its parts, for which some programs write backslashes, and without `./`."""
    name = name.replace("\\", "/")
    while name.startswith("./"):
        name = name[2:]
    return name


def _is_manifest(name: str, manifest: str) -> bool:
    """Return whether a file is a bundle's manifest: at the top, or in one folder that is not a stray one."""
    *folders, last = name.split("/")
    return last == manifest and len(folders) <= 1 and not any(is_stray(folder) or not folder for folder in folders)


@contextlib.contextmanager
def open_archive(path: Path, manifest: str) -> Iterator[Archive]:
    """Open a folder or a zip with the file `manifest` at its top. Errors of a damaged zip become a BundleError.

    Raises:
        BundleError: `path` is neither a folder nor a complete zip, or cannot be read.
    """
    if path.is_dir():
        yield Folder(path)
        return
    if not path.is_file():
        raise BundleError(f"{path} is not a bundle: there is no such file or folder")
    try:
        with zipfile.ZipFile(path) as archive:
            yield Zip(path, archive, manifest)
    except PermissionError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except (*DAMAGED, OSError) as error:
        raise BundleError(
            f"{path} is not a bundle, or is damaged: it is neither a folder nor a complete zip ({error})"
        ) from error


def is_zip_with(path: Path, manifest: str) -> bool:
    """Return whether `path` is a zip with a file of the name `manifest`, at its top or in a folder."""
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(_normal(name).rpartition("/")[2] == manifest for name in archive.namelist())
    except (*DAMAGED, OSError):
        return False


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
