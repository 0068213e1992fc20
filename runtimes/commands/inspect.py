"""`edge-attn inspect`: what a bundle holds, without running it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from edge_attn.bundle.bundle import Bundle


def inspect(bundle: Path) -> dict[str, Any]:
    """Graphs with their inputs and outputs, files with sizes, precision, provenance, the verification record."""
    opened = Bundle.open(bundle)
    content = dataclasses.asdict(opened.manifest)
    content["path"] = str(bundle)
    content["bytes"] = opened.size()
    text = opened.text()
    content["text"] = {"kind": text.kind, "source_entries": len(text.source), "target_entries": len(text.target)}
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def show(content: dict[str, Any]) -> str:
    """The same for people."""
    text, verified, origin = content["text"], content["verification"], content["provenance"]
    lines = [
        f"{content['path']}: {content['family']}, {content['precision']}, {content['bytes'] / 1e6:.1f} MB, "
        f"format {content['format']}",
        f"text: {text['kind']}, {text['source_entries']} source and {text['target_entries']} target entries, "
        f"sources of up to {content['max_source']} tokens",
    ]
    made = origin.get("graphs", {})
    for name, graph in content["graphs"].items():
        size = content["files"][graph["file"]]["size"]
        lines.append(
            f"graph {name}: {graph['file']}, {size / 1e6:.1f} MB, {made.get(name, {}).get('nodes', '?')} nodes"
        )
        ops = made.get(name, {}).get("ops", {})
        lines.append("  ops " + ", ".join(f"{op} {count}" for op, count in ops.items()))
        for kind in ("inputs", "outputs"):
            for tensor in graph[kind]:
                axes = ", ".join(map(str, tensor["shape"]))
                lines.append(f"  {kind[:-1]:<6} {tensor['name']} {tensor['dtype']} ({axes})")
    lines.append(f"verified at export: {_verified(verified)}")
    for name, target in content["targets"].items():
        own = (entry["size"] for file, entry in content["files"].items() if file.startswith(f"targets/{name}/"))
        size = sum(own) or sum(content["files"][graph["file"]]["size"] for graph in target["graphs"].values())
        lines.append(f"target {name}: {size / 1e6:.1f} MB, {_verified(target['verification'])}")
        if "plugins" in target["verification"]:
            lines.append(f"  with plugins: {_verified(target['verification']['plugins'])}")
        settings = {key: value for key, value in target["settings"].items() if key != "modules"}  # one entry a node
        lines += [f"  {key}: {_short(value)}" for key, value in settings.items() if _short(value)]
    lines += [f"{key}: {value}" for key, value in origin.items() if key != "graphs"]
    lines += [f"tolerance {name}: {value:g}" for name, value in content["tolerances"].items()]
    lines += [
        f"file {name}: {entry['size']} bytes, sha256 {entry['sha256']}" for name, entry in content["files"].items()
    ]
    return "\n".join(lines)


def _verified(record: dict[str, Any]) -> str:
    levels = ", ".join(f"{level} {status}" for level, status in record.get("levels", {}).items())
    engine = f"; the engine: {record['engine']}" if "engine" in record else ""
    return f"{levels or 'no record'} ({record.get('provider', 'nothing ran')}{engine})"


def _short(value: Any) -> str:
    """A setting on one line; nothing of what is empty."""
    if isinstance(value, dict):
        shown = [f"{key} {_short(inner)}" for key, inner in value.items() if _short(inner)]
        return ", ".join(shown)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
