"""The manifest of a bundle, bundle.json: what the bundle contains, and the sha256 and size of every file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edge_attn.config.validation import at_least, from_mapping, one_of
from edge_attn.errors import BundleError, ConfigError
from edge_attn.registry import PRECISIONS, TASKS
from edge_attn.spec import GraphSpec

FORMAT = 2
"""1 had no targets; it still loads."""
MANIFEST = "bundle.json"


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
