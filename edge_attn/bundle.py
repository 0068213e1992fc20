"""The bundle: a directory, or its zip, that holds everything a device needs, and a hash of each file.

    bundle.json          the manifest: what is here, and the sha256 and size of every other file
    graphs/*.onnx        portable graphs
    text/                tokenizer and vocabulary
    golden/              what the reference said
    targets/<name>/      what `optimize` made for one target
    MODEL_CARD.md        data, licence, scores

It is written to a temporary sibling and renamed, so a reader sees no bundle or a complete one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edge_attn.config import at_least, from_mapping, one_of
from edge_attn.errors import BundleError, ConfigError, InputError, NotTestedError
from edge_attn.registry import PRECISIONS, TASKS
from edge_attn.spec import GraphSpec
from edge_attn.text import Text

FORMAT = 2
"""1 had no targets; it still loads."""
MANIFEST = "bundle.json"
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)
"""What zipfile raises for a zip that was cut or changed: NotImplementedError for a flag or version it does not know."""


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
    """Stricter bounds than the code's, by their names in edge_attn/parity.py."""
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
        path = Path(path)
        if path.is_dir() and not (path / MANIFEST).exists():
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}")
        if path.is_dir():
            files = _read_folder(path)
        elif path.is_file():
            files = _read_zip(path)
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
                f"run: edge-attn optimize {self.path} --target {name} --precision {precision}"
            )
        return found

    def size(self) -> int:
        return sum(entry.size for entry in self.manifest.files.values())


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


def _read_folder(path: Path) -> dict[str, bytes]:
    files = {}
    for folder, folders, names in os.walk(path):
        for name in [*folders, *names]:
            item = Path(folder, name)
            if item.is_symlink():
                raise BundleError(f"{path}: {item.relative_to(path)} is a link; a bundle holds plain files only")
        for name in names:
            item = Path(folder, name)
            try:
                if not item.is_file():
                    raise BundleError(f"{path}: {item.relative_to(path)} is not a plain file")
                files[item.relative_to(path).as_posix()] = item.read_bytes()
            except OSError as error:
                raise BundleError(f"{item} cannot be read: {error.strerror}") from error
    return files


def _read_zip(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                if item.is_dir():
                    continue
                if stat.S_ISLNK(item.external_attr >> 16):
                    raise BundleError(f"{path}: {item.filename} is a link; a bundle holds plain files only")
                if item.filename in files:
                    raise BundleError(f"{path}: {item.filename} is in the zip twice; export the bundle again")
                if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise BundleError(f"{path}: {item.filename} is compressed in a way that bundles do not use")
                files[item.filename] = archive.read(item)
    except (*DAMAGED, OSError) as error:
        raise BundleError(
            f"{path} is not a bundle, or was damaged: it is neither a folder nor a whole zip ({error})"
        ) from error
    return files


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes], force: bool = False) -> Manifest:
    """Writes a bundle at `path` (a zip if it ends in .zip), the manifest last, whole or not at all.

    Raises:
        InputError: `path` exists and `force` is not given, or cannot be written; nothing half-written is left.
        BundleError: a graph's file is not among `files`.
    """
    check_output(path, force)
    entries = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(files.items())}
    manifest = dataclasses.replace(manifest, files=entries)
    manifest.check_graphs(path)
    content = (json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        contents = [*sorted(files.items()), (MANIFEST, content)]
        if path.suffix == ".zip":
            _write(temporary, _zipped(contents))
        else:
            for name, data in contents:
                _write(temporary / name, data)
        _replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)
    return manifest


def _zipped(contents: list[tuple[str, bytes]]) -> bytes:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, data in contents:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return zipped.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def check_output(path: Path, force: bool) -> None:
    """Refuses a `path` that must not be written over; asked before long work and again before writing."""
    if not path.exists():
        return
    if not force:
        raise InputError(f"{path} exists; choose another --out, or give --force to replace it")
    if not _replaceable(path):
        raise InputError(f"{path} exists and is not a bundle, so --force does not replace it; choose another --out")


def _replaceable(path: Path) -> bool:
    """A bundle, whole or not, or an empty folder."""
    if path.is_dir():
        return (path / MANIFEST).is_file() or not any(path.iterdir())
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (*DAMAGED, OSError):
        return False


def _replace(temporary: Path, path: Path) -> None:
    """Puts `temporary` in the place of `path`. Between two renames there is no bundle, never half a one."""
    if not path.exists():
        temporary.rename(path)
        return
    old = path.with_name(f".{path.name}.old")
    _remove(old)
    path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
