"""The bundle: a folder, or its zip, with everything that a device needs, and a hash of each file.

    bundle.json          the manifest: the contents, with the sha256 and size of every other file
    graphs/*.onnx        portable graphs
    text/                tokenizer and vocabulary
    golden/              results of the reference
    targets/<name>/      graphs that `optimize` has written for one target
    MODEL_CARD.md        data, license, scores

A writer renames a complete temporary sibling, one writer at a time, so a reader sees no bundle or a complete one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from edge_attn.bundle.archive import Archive, open_archive
from edge_attn.bundle.manifest import MANIFEST, FileEntry, Manifest, Target, parse_manifest
from edge_attn.errors import BundleError, NotTestedError
from edge_attn.path_kind import BUNDLE, ZIP, check_kind
from edge_attn.storage.atomic import is_being_replaced, restore_interrupted
from edge_attn.text.pipeline import Text

LARGEST_MANIFEST = 1 << 26
"""Largest size of a manifest in bytes."""
MAX_ATTEMPTS = 10
"""Maximum number of times that a bundle is read while writers replace it."""


class Bundle:
    """An opened bundle: every listed file is present and has its hash."""

    def __init__(self, path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        self.path, self.manifest, self._files = path, manifest, files

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open and check the bundle `path`, a folder or a zip.

        Raises:
            BundleError: `path` is not a bundle, a file is missing, truncated, changed or not listed, or the manifest
                has an error.
        """
        path, attempts = Path(path), 0
        check_kind(path, "a bundle", (BUNDLE, ZIP), BundleError)
        while True:
            attempts += 1
            _restore(path)
            before = _identity(path)
            try:
                return cls._read(path)
            except OSError as error:
                raise BundleError(f"{path} cannot be read: {error.strerror}") from error
            except BundleError:
                is_unchanged = _identity(path) == before and not is_being_replaced(path)
                if is_unchanged or attempts == MAX_ATTEMPTS:
                    raise  # otherwise a writer replaced the bundle during the read

    @classmethod
    def _read(cls, path: Path) -> Bundle:
        with open_archive(path, MANIFEST) as archive:
            size = archive.size(MANIFEST)
            if size is None:
                raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}")
            if size > LARGEST_MANIFEST:
                raise BundleError(f"{path}: {MANIFEST} has {size} bytes, at most {LARGEST_MANIFEST} are read")
            manifest = parse_manifest(archive.read(MANIFEST), path)
            files = {name: _read_file(archive, path, name, entry) for name, entry in manifest.files.items()}
            unlisted = archive.unlisted({MANIFEST, *files})
        if unlisted is not None:
            raise BundleError(f"{path}: {unlisted} is not listed in {MANIFEST}; remove it, or export the bundle again")
        return cls(path, manifest, files)

    def read(self, name: str) -> bytes:
        """Return the content of the file `name`.

        Raises:
            BundleError: the bundle has no such file.
        """
        if name not in self._files:
            raise BundleError(f"{self.path}: {name} is missing")
        return self._files[name]

    def files(self) -> dict[str, bytes]:
        """Return the content of every file except the manifest, by name."""
        return {name: self._files[name] for name in self.manifest.files}

    def text(self) -> Text:
        """Load the tokenizers.

        Raises:
            InputError: a tokenizer file is damaged.
        """
        return Text.load(self.read)

    def target(self, name: str, precision: str) -> Target:
        """Return the graphs of the target `name` in `precision`.

        Raises:
            NotTestedError: `optimize` has not written this target. The message contains the command to run.
        """
        target = self.manifest.targets.get(f"{name}-{precision}")
        if target is None:
            raise NotTestedError(
                f"{self.path} has no {precision} graphs for {name}; "
                f"run: edge-attn optimize {shlex.quote(str(self.path))} --target {name} --precision {precision}"
            )
        return target

    def size(self) -> int:
        """Return the total size of the listed files, in bytes."""
        return sum(entry.size for entry in self.manifest.files.values())


def _read_file(archive: Archive, path: Path, name: str, entry: FileEntry) -> bytes:
    """Return the content of a file of the bundle `path`, proved by its hash, through whatever link it was read.

    Raises:
        BundleError: it is missing, truncated or changed.
    """
    size = archive.size(name)
    if size is None:
        raise BundleError(f"{path}: {name} is missing; copy the bundle again")
    if size == entry.size:
        data = archive.read(name)
        size = len(data)
    if size != entry.size:
        raise BundleError(f"{path}: {name} has {size} bytes, expected {entry.size}; copy the bundle again")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(f"{path}: {name} was changed: its sha256 is not the manifest's; copy the bundle again")
    return data


def _restore(path: Path) -> None:
    """Move back the bundle that a killed writer moved away from `path`.

    Raises:
        BundleError: it cannot be moved back.
    """
    try:
        restore_interrupted(path)
    except OSError as error:
        raise BundleError(
            f"{path} was moved away by a writer that was killed, and cannot be moved back: {error}"
        ) from error


def _identity(path: Path) -> list[tuple[int, int]]:
    """Return the device and inode of `path` and of the manifest in it, as far as they exist."""
    identity = []
    for item in (path, path / MANIFEST):
        with contextlib.suppress(OSError, ValueError):
            identity.append((item.stat().st_dev, item.stat().st_ino))
    return identity
