"""`edge-attn inspect`: the content of a bundle, without running it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_attn.bundle.bundle import Bundle


@dataclass(frozen=True)
class Inspection:
    """Graphs with their inputs and outputs, files, precision, provenance and verification record of a bundle."""

    content: dict[str, Any]
    """Manifest as JSON values, with the keys `path`, `bytes` and `text` added; `text` is null without text/."""

    def json(self) -> str:
        return json.dumps(self.content, indent=1, sort_keys=True) + "\n"

    def __str__(self) -> str:
        content = self.content
        lines = [
            f"{content['path']}: {content['family']}, task {content['task']}, {content['precision']}, "
            f"{content['bytes'] / 1e6:.1f} MB, format {content['format']}",
            *self._text_lines(),
            *self._graph_lines(),
            f"verified at export: {_verification(content['verification'])}",
            *self._target_lines(),
        ]
        lines += [f"{key}: {value}" for key, value in content["provenance"].items() if key != "graphs"]
        lines += [f"tolerance {name}: {value:g}" for name, value in content["tolerances"].items()]
        lines += [f"file {name}: {file['size']} bytes, sha256 {file['sha256']}" for name, file in self._files()]
        return "\n".join(lines)

    def _files(self) -> list[tuple[str, dict[str, Any]]]:
        return list(self.content["files"].items())

    def _text_lines(self) -> Iterator[str]:
        if text := self.content["text"]:
            entries = f"{text['source_entries']} source and {text['target_entries']} target entries"
            yield f"text: {text['kind']}, {entries}"
        yield f"sources of up to {self.content['max_source']} tokens"

    def _graph_lines(self) -> Iterator[str]:
        statistics = self.content["provenance"].get("graphs", {})
        for name, graph in self.content["graphs"].items():
            size = self.content["files"][graph["file"]]["size"]
            nodes = statistics.get(name, {}).get("nodes", "?")
            yield f"graph {name}: {graph['file']}, {size / 1e6:.1f} MB, {nodes} nodes"
            ops = statistics.get(name, {}).get("ops", {})
            yield "  ops " + ", ".join(f"{op} {count}" for op, count in ops.items())
            for kind in ("inputs", "outputs"):
                for tensor in graph[kind]:
                    axes = ", ".join(map(str, tensor["shape"]))
                    yield f"  {kind[:-1]:<6} {tensor['name']} {tensor['dtype']} ({axes})"

    def _target_lines(self) -> Iterator[str]:
        files = self.content["files"]
        for name, target in self.content["targets"].items():
            size = sum(file["size"] for path, file in self._files() if path.startswith(f"targets/{name}/"))
            size = size or sum(files[graph["file"]]["size"] for graph in target["graphs"].values())
            yield f"target {name}: {size / 1e6:.1f} MB, {_verification(target['verification'])}"
            if "plugins" in target["verification"]:
                yield f"  with plugins: {_verification(target['verification']['plugins'])}"
            for key, value in target["settings"].items():
                if key != "modules" and (text := _setting(value)):  # modules has one entry for each node
                    yield f"  {key}: {text}"


def inspect(bundle: Path) -> Inspection:
    """Read the manifest of `bundle`.

    Raises:
        BundleError: `bundle` is not a bundle.
    """
    opened = Bundle.open(bundle)
    text = opened.text() if any(name.startswith("text/") for name in opened.manifest.files) else None
    content = {
        **dataclasses.asdict(opened.manifest),
        "path": str(bundle),
        "bytes": opened.size(),
        "text": text and {"kind": text.kind, "source_entries": len(text.source), "target_entries": len(text.target)},
    }
    return Inspection(json.loads(json.dumps(content)))  # JSON values: tuples are lists


def _verification(record: dict[str, Any]) -> str:
    levels = ", ".join(f"{level} {status}" for level, status in record.get("levels", {}).items())
    engine = f"; the engine: {record['engine']}" if "engine" in record else ""
    return f"{levels or 'no record'} ({record.get('provider', 'nothing ran')}{engine})"


def _setting(value: Any) -> str:
    """Format a setting on one line; empty parts are left out."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {text}" for key, inner in value.items() if (text := _setting(inner)))
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
