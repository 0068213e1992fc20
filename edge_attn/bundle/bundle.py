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

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edge_attn.bundle.archive import DAMAGED, read_folder, read_zip, write_folder, write_zip
from edge_attn.config.training import at_least, from_mapping, one_of
from edge_attn.errors import BundleError, ConfigError, InputError, NotTestedError
from edge_attn.registry import PRECISIONS, TASKS
from edge_attn.spec import GraphSpec
from edge_attn.storage.atomic import alone, is_being_replaced, put, restore
from edge_attn.text.tokenizers import Text

FORMAT = 2
"""1 had no targets; it still loads."""
MANIFEST = "bundle.json"
TRIES = 10
"""How often a bundle is read that is replaced meanwhile."""


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    size: int


@dataclass(frozen=True)
class Target:
    """What `optimize` made for one target in one precision: graphs whose inputs and outputs are the portable ones'."""

    target: str
    precision: str
    graphs: dict[str, GraphSpec]
    settings: dict[str, Any] = field(default_factory=dict)
    """What it was made with and what was chosen: the oldest version, fp32 islands, calibration, profiles."""
    verification: dict[str, Any] = field(default_factory=dict)
    """What verify said about these graphs when they were made."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")

    @property
    def name(self) -> str:
        return f"{self.target}-{self.precision}"


@dataclass(frozen=True)
class Manifest:
    format: int
    family: str
    task: str
    precision: str
    graphs: dict[str, GraphSpec]
    max_source: int
    """Longest source in tokens, eos counted, that golden data covers; longer lines are cut to it, with a warning."""
    mask_policy: str = "zero"
    """What a row without keys gives: weights 0 and context 0."""
    tolerances: dict[str, float] = field(default_factory=dict)
    """Stricter bounds than the code's, by their names in edge_attn/parity/results.py."""
    provenance: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    """What verify said when the bundle was made."""
    targets: dict[str, Target] = field(default_factory=dict)
    """By their names, `<target>-<precision>`."""
    files: dict[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"unknown task {self.task!r}; known: {', '.join(sorted(TASKS))}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        one_of("mask_policy", self.mask_policy, ("zero",))
        at_least("max_source", self.max_source, 1)
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name:
                raise ConfigError(f"files: {name!r} leaves the bundle")
        for name, target in self.targets.items():
            if name != target.name:
                raise ConfigError(f"targets: {name!r} is {target.name!r} by its own words")
        for name, graph in self._all_graphs().items():
            for tensor in (*graph.inputs, *graph.outputs):
                if not all(isinstance(axis, str) or (type(axis) is int and axis >= 0) for axis in tensor.shape):
                    raise ConfigError(f"graphs: {name}: an axis of {tensor} is neither a name nor a size")

    def check_graphs(self, path: Path) -> None:
        """Refuses a graph in a file that `files` does not list; asked once `files` is known."""
        for name, graph in self._all_graphs().items():
            if graph.file not in self.files:
                raise BundleError(
                    f"{path}: {MANIFEST}: the graph {name!r} is in {graph.file!r}, which files does not list"
                )

    def _all_graphs(self) -> dict[str, GraphSpec]:
        """The portable graphs and those of the targets, by names for people."""
        ready = {f"{t.name}/{name}": graph for t in self.targets.values() for name, graph in t.graphs.items()}
        return {**self.graphs, **ready}


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
        restore(path)
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


def _manifest(data: bytes, path: Path) -> Manifest:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {MANIFEST} is not JSON: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, int) or found < 1:
        raise BundleError(f"{path}: {MANIFEST} has no format number")
    if found > FORMAT:
        raise BundleError(f"{path} has format {found}, this version reads up to {FORMAT}; install a newer edge-attn")
    try:
        manifest = from_mapping(Manifest, content, f"{path}: {MANIFEST}")
    except ConfigError as error:
        raise BundleError(str(error)) from error
    manifest.check_graphs(path)
    return manifest


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
        with alone(place):
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
    put(place, functools.partial(write_zip if zipped else write_folder, contents))


def check_output(path: Path, force: bool, size: int = 0) -> None:
    """Refuses a `path` that must not be written over, or cannot be written; asked before long work and again before
    writing. `size` bytes must be free there.

    Raises:
        InputError: what is at `path` stays there.
    """
    try:
        place = Path(os.path.realpath(path))
        restore(place)
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
