"""The manifest of a bundle, bundle.json: its graphs and targets, and the sha256 and size of every file."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edge_attn.bundle.records import check_provenance, check_settings, check_verification
from edge_attn.config.json_values import parse_json
from edge_attn.config.validation import at_least, from_mapping, one_of
from edge_attn.errors import BundleError, ConfigError, quoted
from edge_attn.registry import FORMER_TASKS, PRECISIONS, TASKS
from edge_attn.spec import GraphSpec, TensorSpec

FORMAT = 4
"""Format number. Format 1 had no targets, format 2 the task name seq2seq, format 3 golden data of sentences only; all
of them still load."""
TASK_NAMES_FORMAT = 3
"""First format with the present names of tasks, and oldest one that is written."""
COMPLETE_GOLDEN_FORMAT = 4
"""First format whose golden data covers every entry of every table, and whose manifest records its contents."""
MANIFEST = "bundle.json"
INTEGERS = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
DTYPES = {"bool", "float16", "float32", "float64", *INTEGERS}
LARGEST_SIZE = 1 << 31
"""Largest fixed axis of a tensor, and largest `max_source`."""


@dataclass(frozen=True)
class FileEntry:
    """Hash and size of a file, in bytes."""

    sha256: str
    size: int

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ConfigError(f"sha256 must be 64 digits of 0 to 9 and a to f, got {quoted(self.sha256)}")
        at_least("size", self.size, 0)


@dataclass(frozen=True)
class Target:
    """Graphs that `optimize` has written for one target in one precision.

    They have the inputs and outputs of the portable graphs.
    """

    target: str
    precision: str
    graphs: dict[str, GraphSpec]
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings and choices of `optimize`: the oldest version, fp32 islands, calibration, profiles."""
    verification: dict[str, Any] = field(default_factory=dict)
    """Summary of the verification when `optimize` wrote these graphs."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        check_settings(self.settings)
        check_verification(self.verification)

    @property
    def name(self) -> str:
        """Key in `Manifest.targets`."""
        return f"{self.target}-{self.precision}"


@dataclass(frozen=True)
class Manifest:
    """Content of bundle.json."""

    format: int
    family: str
    task: str
    precision: str
    graphs: dict[str, GraphSpec]
    max_source: int
    """Maximum source length in tokens, with eos, of the golden data. Longer lines are truncated, with a warning."""
    mask_policy: str = "zero"
    """Result of a row whose keys are all masked: "zero" is weights 0 and context 0."""
    tolerances: dict[str, float] = field(default_factory=dict)
    """Bounds stricter than the defaults, by their names in edge_attn/parity/tolerances.py."""
    provenance: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    """Summary of the verification at export."""
    golden: dict[str, int] = field(default_factory=dict)
    """Counts of the golden data: sentences, hypotheses, entries. It must hold exactly these."""
    targets: dict[str, Target] = field(default_factory=dict)
    """Targets by name, `<target>-<precision>`."""
    files: dict[str, FileEntry] = field(default_factory=dict)
    """Every file of the bundle except bundle.json, by its relative path."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"unknown task {self.task!r}; known: {', '.join(sorted(TASKS))}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        one_of("mask_policy", self.mask_policy, ("zero",))
        if not 1 <= self.max_source <= LARGEST_SIZE:
            raise ConfigError(f"max_source must be at least 1 and at most {LARGEST_SIZE}, got {self.max_source}")
        for name, bound in self.tolerances.items():
            if not 0 <= bound < math.inf:
                raise ConfigError(f"tolerances: {name} must be at least 0 and finite, got {bound}")
        check_provenance(self.provenance)
        check_verification(self.verification)
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name:
                raise ConfigError(f"files: {name!r} leaves the bundle")
        for name, target in self.targets.items():
            if name != target.name:
                raise ConfigError(f"targets: {name!r} has the target and precision of {target.name!r}")
        for name, graph in self._all_graphs().items():
            for tensors in (graph.inputs, graph.outputs):
                names = [tensor.name for tensor in tensors]
                if len({*names}) < len(names):
                    raise ConfigError(f"graphs: {name}: two inputs or outputs have the same name: {quoted(names)}")
                for tensor in tensors:
                    _check_tensor(tensor, f"graphs: {name}")

    def check_graphs(self, path: Path) -> None:
        """Check that `files` lists the file of every graph.

        Raises:
            BundleError: a graph's file is not listed.
        """
        for name, graph in self._all_graphs().items():
            if graph.file not in self.files:
                raise BundleError(
                    f"{path}: {MANIFEST}: the graph {name!r} is in {graph.file!r}, which files does not list"
                )

    def _all_graphs(self) -> dict[str, GraphSpec]:
        """Return the portable graphs and those of the targets, by the names that messages use."""
        optimized = {f"{t.name}/{name}": graph for t in self.targets.values() for name, graph in t.graphs.items()}
        return {**self.graphs, **optimized}


def _check_tensor(tensor: TensorSpec, where: str) -> None:
    """Check an input or output of a graph.

    Raises:
        ConfigError: an unknown dtype, an axis that is neither a name nor a size, or values that are no range.
    """
    if tensor.dtype not in DTYPES:
        raise ConfigError(f"{where}: {quoted(tensor.name)} has the unknown dtype {quoted(tensor.dtype)}")
    for axis in tensor.shape:
        if not (axis if isinstance(axis, str) else type(axis) is int and 0 <= axis <= LARGEST_SIZE):
            raise ConfigError(f"{where}: an axis of {quoted(str(tensor))} is neither a name nor a size")
    ends = tensor.values
    if ends and (len(ends) != 2 or not all(type(end) in (int, float, str) for end in ends)):
        raise ConfigError(f"{where}: the values of {quoted(tensor.name)} must be a minimum and a maximum")
    if all(type(end) in (int, float) for end in ends) and ends and not ends[0] <= ends[1]:
        raise ConfigError(f"{where}: the values of {quoted(tensor.name)} have a minimum above the maximum")


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Parse and check the content of bundle.json of the bundle `path`, which messages name.

    Raises:
        BundleError: not JSON, a newer format, an unknown or missing key, a bad value, or a graph without a file.
    """
    try:
        content = parse_json(data, f"{path}: {MANIFEST}")
    except ConfigError as error:
        raise BundleError(str(error)) from error
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int) or version < 1:
        raise BundleError(f"{path}: {MANIFEST} has no format number")
    if version > FORMAT:
        raise BundleError(f"{path} has format {version}, this version reads up to {FORMAT}; install a newer edge-attn")
    try:
        task = content.get("task")
        if isinstance(task, str):
            content["task"] = FORMER_TASKS.get(task, task)
        manifest = from_mapping(Manifest, content, f"{path}: {MANIFEST}")
    except ConfigError as error:
        raise BundleError(str(error)) from error
    manifest.check_graphs(path)
    return manifest
