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

import hashlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from edge_attn.bundle.archive import read_folder, read_zip
from edge_attn.bundle.manifest import MANIFEST, Manifest, Target, parse_manifest
from edge_attn.errors import BundleError, NotTestedError
from edge_attn.storage.atomic import is_being_replaced, restore_interrupted
from edge_attn.text.pipeline import Text

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
        if path.is_dir() and not (path / MANIFEST).exists():
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}")
        if path.is_dir():
            files = read_folder(path)
        elif path.is_file():
            files = read_zip(path)
        else:
            raise BundleError(f"{path} is not a bundle: there is no such file or folder")
        if MANIFEST not in files:
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}")
        manifest = parse_manifest(files.pop(MANIFEST), path)
        for name, entry in manifest.files.items():
            if name not in files:
                raise BundleError(f"{path}: {name} is missing; copy the bundle again")
            data = files[name]
            if len(data) != entry.size:
                raise BundleError(f"{path}: {name} has {len(data)} bytes, expected {entry.size}; copy the bundle again")
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                raise BundleError(
                    f"{path}: {name} was changed: its sha256 is not the manifest's; copy the bundle again"
                )
        unlisted = sorted(files.keys() - manifest.files.keys())
        if unlisted:
            raise BundleError(
                f"{path}: {unlisted[0]} is not listed in {MANIFEST}; remove it, or export the bundle again"
            )
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


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of `path`, or None if there is no such file or folder."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
