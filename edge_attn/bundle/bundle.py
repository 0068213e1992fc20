"""The bundle: a directory, or its zip, that holds everything a device needs, and a hash of each file.

    bundle.json          the manifest: what is here, and the sha256 and size of every other file
    graphs/*.onnx        portable graphs
    text/                tokenizer and vocabulary
    golden/              what the reference said
    targets/<name>/      what `optimize` made for one target
    MODEL_CARD.md        data, licence, scores

It is written to a temporary sibling and renamed, one writer at a time, so a reader sees no bundle or a complete one.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from edge_attn.bundle.archive import read_folder, read_zip
from edge_attn.bundle.manifest import MANIFEST, Manifest, Target, _manifest
from edge_attn.errors import BundleError, NotTestedError
from edge_attn.storage.atomic import is_being_replaced, restore_interrupted
from edge_attn.text.pipeline import Text

TRIES = 10
"""How often a bundle is read that is replaced meanwhile."""


class Bundle:
    """An opened bundle, every file of which was found and has its hash.

    Raises (from `open`):
        BundleError: not a bundle; a file missing, truncated, changed or not listed; a manifest that cannot be trusted.
    """

    def __init__(self, path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        self.path, self.manifest, self._files = path, manifest, files

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        path, tries = Path(path), 0
        while True:
            tries += 1
            _restore(path)
            before = _identity(path)
            try:
                return cls._read(path)
            except OSError as error:
                raise BundleError(f"{path} cannot be read: {error.strerror}") from error
            except BundleError:
                is_the_same = _identity(path) == before and not is_being_replaced(path)
                if is_the_same or tries == TRIES:
                    raise  # else it was replaced while it was read

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
        manifest = _manifest(files.pop(MANIFEST), path)
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
        extra = sorted(files.keys() - manifest.files.keys())
        if extra:
            raise BundleError(f"{path}: {extra[0]} is not listed in {MANIFEST}; remove it, or export the bundle again")
        return cls(path, manifest, files)

    def read(self, name: str) -> bytes:
        if name not in self._files:
            raise BundleError(f"{self.path}: {name} is missing")
        return self._files[name]

    def files(self) -> dict[str, bytes]:
        """Every file by its name, without the manifest."""
        return {name: self._files[name] for name in self.manifest.files}

    def text(self) -> Text:
        return Text.load(self.read)

    def target(self, name: str, precision: str) -> Target:
        """What `optimize` made for the target `name`.

        Raises:
            NotTestedError: it made nothing yet; the sentence is the command that does.
        """
        found = self.manifest.targets.get(f"{name}-{precision}")
        if found is None:
            raise NotTestedError(
                f"{self.path} holds no {precision} graphs for {name}; "
                f"run: edge-attn optimize {shlex.quote(str(self.path))} --target {name} --precision {precision}"
            )
        return found

    def size(self) -> int:
        return sum(entry.size for entry in self.manifest.files.values())


def _restore(path: Path) -> None:
    """Puts back the bundle that a writer took away from `path` that was killed.

    Raises:
        BundleError: it cannot be put back.
    """
    try:
        restore_interrupted(path)
    except OSError as error:
        raise BundleError(
            f"{path} was taken away by a writer that was killed, and cannot be put back: {error}"
        ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    """Of the file or folder that is at `path` now."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
