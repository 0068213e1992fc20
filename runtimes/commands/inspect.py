"""`edge-attn inspect`: the content of a bundle, without running it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Manifest
from edge_attn.errors import escape

CARD = "MODEL_CARD.md"


@dataclass(frozen=True)
class Inspection:
    """Graphs with their inputs and outputs, files, precision, provenance and verification record of a bundle."""

    content: dict[str, Any]
    """Manifest as JSON values, with `path`, `bytes`, `text` and `model` added; `text` is null without text/."""

    def json(self) -> str:
        return json.dumps(self.content, indent=1, sort_keys=True) + "\n"

    def __str__(self) -> str:
        return "\n".join(map(escape, [*self._summary_lines(), *self._graph_lines(), *self._target_lines()]))

    def details(self) -> str:
        """Return the text with ops, build settings, provenance, and size and hash of each file."""
        content = self.content
        lines = [*self._summary_lines(), *self._graph_lines(details=True), *self._target_lines(details=True)]
        lines += [f"{key}: {value}" for key, value in content["provenance"].items() if key != "graphs"]
        lines += [f"file {name}: {file['size']} bytes, sha256 {file['sha256']}" for name, file in self._files()]
        return "\n".join(map(escape, lines))

    def architecture(self) -> str:
        """Return cell, attention and number of weights, as far as they are known, each with a comma behind it."""
        model, weights = self.content["model"], self.content["provenance"].get("parameters")
        parts = [f"{model['cell']} decoder"] if model["cell"] else []
        if model["attention"]:
            parts.append("no attention" if model["attention"] == "none" else f"{model['attention']} attention")
        if isinstance(weights, int):
            parts.append(f"{weights / 1e6:.1f} M weights" if weights >= 1e5 else f"{weights} weights")
        return "".join(f"{part}, " for part in parts)

    def _summary_lines(self) -> Iterator[str]:
        """Yield the lines that answer what the model is and what it can do."""
        content, model = self.content, self.content["model"]
        yield f"{content['path']}: {model['title'] or content['task']}"
        yield f"model: {content['family']} for {content['task']}, {self.architecture()}{content['precision']}"
        if text := content["text"]:
            entries = f"{text['source_entries']} source and {text['target_entries']} target entries"
            yield f"vocabularies: {text['kind']}, {entries}"
        beam = f", beam of up to {model['beam']}" if model["beam"] else ""
        yield f"limits: sources of up to {content['max_source']} tokens{beam}"
        yield f"size: {content['bytes'] / 1e6:.1f} MB, format {content['format']}"
        yield f"verified at export: {_verification(content['verification'])}"
        yield from (f"tolerance {name}: {value:g}" for name, value in content["tolerances"].items())
        yield f"targets: {', '.join(content['targets']) or 'none beside the portable graphs'}"

    def _files(self) -> list[tuple[str, dict[str, Any]]]:
        return list(self.content["files"].items())

    def _graph_lines(self, details: bool = False) -> Iterator[str]:
        statistics = self.content["provenance"].get("graphs", {})
        for name, graph in self.content["graphs"].items():
            size = self.content["files"][graph["file"]]["size"]
            nodes = statistics.get(name, {}).get("nodes", "?")
            yield f"graph {name}: {graph['file']}, {size / 1e6:.1f} MB, {nodes} nodes"
            if details and (ops := statistics.get(name, {}).get("ops", {})):
                yield "  ops " + ", ".join(f"{op} {count}" for op, count in ops.items())
            for kind in ("inputs", "outputs"):
                for tensor in graph[kind]:
                    axes = ", ".join(map(str, tensor["shape"]))
                    yield f"  {kind[:-1]:<6} {tensor['name']} {tensor['dtype']} ({axes})"

    def _target_lines(self, details: bool = False) -> Iterator[str]:
        files = self.content["files"]
        for name, target in self.content["targets"].items():
            size = sum(file["size"] for path, file in self._files() if path.startswith(f"targets/{name}/"))
            size = size or sum(files[graph["file"]]["size"] for graph in target["graphs"].values())
            yield f"target {name}: {size / 1e6:.1f} MB, {_verification(target['verification'])}"
            if "plugins" in target["verification"]:
                yield f"  with plugins: {_verification(target['verification']['plugins'])}"
            for key, value in target["settings"].items() if details else ():
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
        "model": {
            "title": _title(opened),
            "cell": _cell(opened.manifest),
            "attention": _attention(opened.manifest),
            "beam": _largest_beam(opened.manifest),
        },
    }
    return Inspection(json.loads(json.dumps(content)))  # JSON values: tuples are lists


def _title(bundle: Bundle) -> str:
    """Return the first heading of the model card, which names the languages; empty without a card."""
    if CARD not in bundle.manifest.files:
        return ""
    lines = bundle.read(CARD).decode("utf-8", errors="replace").splitlines()
    return next((line.lstrip("# ").strip() for line in lines if line.startswith("# ")), "")


def _cell(manifest: Manifest) -> str:
    """Return the decoder's cell: that of the provenance, or that of a bundle of 0.1.0 by the names of its states."""
    if "cell" in manifest.provenance or manifest.family != "seq2seq":
        return str(manifest.provenance.get("cell", "")).upper()
    states = {tensor.name for graph in manifest.graphs.values() for tensor in graph.inputs}
    for name, cell in (("state.keys.0", "LSTMN"), ("state.cell.0", "LSTM"), ("state.hidden.0", "GRU")):
        if name in states:
            return cell
    return ""


def _attention(manifest: Manifest) -> str:
    """Return the attention: that of the provenance, or that of a bundle of 0.1.0 by its ops; empty if it has none."""
    if "attention" in manifest.provenance:
        return str(manifest.provenance["attention"])
    statistics = manifest.provenance.get("graphs", {}).values()
    ops = {op.partition("::")[2] for graph in statistics for op in graph.get("ops", {}) if "::" in op}
    names = [re.sub("(?<=[a-z])(?=[A-Z])", " ", op).lower() for op in sorted(ops) if "Attention" in op]
    return ", ".join(name.replace("attention", "").strip() for name in names)


def _largest_beam(manifest: Manifest) -> int | None:
    """Return the largest beam, one less than the candidates of a step; None for a model without search."""
    outputs = [tensor for graph in manifest.graphs.values() for tensor in graph.outputs]
    sizes = [tensor.shape[-1] for tensor in outputs if tensor.name == "candidates" and tensor.shape]
    return sizes[0] - 1 if sizes and isinstance(sizes[0], int) else None


def _verification(record: dict[str, Any]) -> str:
    levels = ", ".join(f"{level} {status}" for level, status in record.get("levels", {}).items())
    engine = f"; the engine: {record['engine']}" if "engine" in record else ""
    return f"{levels or 'no record'} ({record.get('provider', 'nothing ran')}{engine})"


def _setting(value: Any) -> str:
    """Format a setting on one line; empty parts are left out."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {text}" for key, inner in value.items() if (text := _setting(inner)))
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
