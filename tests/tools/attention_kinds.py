"""Every kind of attention, trained once on dates and taken the whole way: the README's table and picture of kinds.

    python tests/tools/attention_kinds.py FOLDER-OF-DATES --out FOLDER [--kind NAME ...]

Trains edge_attn/pretrained/date.toml with the kind's own options, on one thread; exports; verifies; scores 5,000
held-out dates by exact match, greedily; parses and builds the graphs with TensorRT-RTX on the CPU. A kind that FOLDER
already holds is not made again, so the run may be stopped and started. Prints the table of what FOLDER holds, and
writes the alignments of all on one date into FOLDER/alignments.svg.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from support_table import builds, parses

import edge_attn
from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.options import SearchConfig
from edge_attn.parity import golden
from edge_attn.registry import VERBS, resolve
from edge_attn.runtimes.commands.plots import write_svg
from edge_attn.runtimes.optimize.optimize import optimize
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.tasks.translation import Translation, Translator
from edge_attn.runtimes.trt.api import load_tensorrt
from edge_attn.runtimes.verification.verify import check

BASE = Path(edge_attn.__file__).resolve().parent / "pretrained" / "date.toml"
DATE = "wednesday, november 25, 2015"
ONE_THREAD = RuntimeOptions(threads=1)
AFTER = {"attend": "after", "input_feeding": True}
KINDS: dict[str, dict[str, Any]] = {
    "none": {"attention": "none"},
    "additive": {},
    "concat": {"attention": "concat", **AFTER},
    "dot": {"attention": "dot", **AFTER},
    "general": {"attention": "general", **AFTER},
    "scaled": {"attention": "scaled", **AFTER},
    "location": {"attention": "location", "positions": 40, **AFTER},
    "additive, sparsemax": {"normalizer": "sparsemax"},
    "additive, coverage": {"coverage": True, "input_feeding": True},
    "multi-head": {"attention": "multi-head"},
    "pooling": {"attention": "pooling"},
    "keras-dot": {"attention": "keras-dot"},
    "keras-concat": {"attention": "keras-concat"},
    "keras-additive": {"attention": "keras-additive"},
    "local-m over general": {"attention": "general", "focus": "local-m", "window": 10, **AFTER},
    "local-p over general": {"attention": "general", "focus": "local-p", "window": 4, **AFTER},
    "local-p over dot": {"attention": "dot", "focus": "local-p", "window": 4, **AFTER},
    "local-p over concat": {"attention": "concat", "focus": "local-p", "window": 4, **AFTER},
    "hard, straight-through": {"focus": "hard", "hard_training": "straight-through"},
    "hard, reinforce": {"focus": "hard", "hard_training": "reinforce"},
    "additive, lstmn encoder": {"cell": "lstm", "encoder_cell": "lstmn"},
    "additive, lstmn": {"cell": "lstmn", "tape": 16},
}
HEAD = ("Kind", "Exact match", "Parameters", "Nodes: encoder, step", "From the reference, at most", "TensorRT-RTX")


FOUND = "found.json"


def verb(name: str) -> Any:
    return resolve("verb", VERBS, name)


def configuration(options: dict[str, Any]) -> str:
    """The base with `options` in place of its own lines of the table `model`."""
    text = BASE.read_text(encoding="utf-8")
    for key, value in options.items():
        line = f"{key} = {json.dumps(value)}"
        text, found = re.subn(rf"(?m)^{key} = .*$", line, text)
        if not found:
            text = text.replace("[model]", f"[model]\n{line}")
    return text


def make(name: str, folder: Path, data: Path) -> None:
    """Trains, exports, verifies and scores one kind, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(configuration(KINDS[name]), encoding="utf-8")
    started = time.process_time()
    verb("train")(folder / "config.toml", folder / "checkpoint", data, 1)
    seconds = time.process_time() - started
    bundle = folder / "bundle.zip"
    manifest = verb("export")(folder / "checkpoint", bundle, force=True)
    held_out = folder / "held-out.tsv"
    lines = gzip.decompress((data / "date.txt.gz").read_bytes()).decode().splitlines()[-5000:]
    held_out.write_text("".join(line.replace("_", "\t") + "\n" for line in lines), encoding="utf-8")
    scored = verb("evaluate")(bundle, held_out, config=SearchConfig(beam=1), options=ONE_THREAD).total
    opened = Bundle.open(bundle)
    report = check(opened, OrtCpu(opened, ONE_THREAD), golden.load(opened.read))
    measured = [m for level in report.levels for m in level.measurements]
    [apart] = [m.value for m in measured if (m.level, m.name) == ("L2", "log_prob")]
    found = {
        "apart": apart,
        "exact": scored.exact,
        "nodes": [manifest.provenance["graphs"][graph]["nodes"] for graph in ("encoder", "step")],
        "parameters": manifest.provenance["parameters"],
        "seconds": round(seconds),
        "sentences": scored.sentences,
        "tensorrt_rtx": on_tensorrt(bundle, folder),
        "verdict": report.verdict,
    }
    (folder / FOUND).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def on_tensorrt(bundle: Path, folder: Path) -> str:
    """`builds`, or what TensorRT-RTX says against a graph of the bundle."""
    made = folder / "trt.zip"
    shutil.copy(bundle, made)
    optimize(made, "trt", "fp32", threads=1, log=lambda line: None)
    opened, tensorrt = Bundle.open(made), load_tensorrt(rtx=True)
    said = [
        word
        for spec in opened.target("trt", "fp32").graphs.values()
        for word in (parses(tensorrt, opened.read(spec.file)), builds(tensorrt, opened, opened.read(spec.file), spec))
        if word != "yes"
    ]
    return said[0] if said else "builds"


def table(folders: dict[str, Path]) -> str:
    """Markdown, a row for each kind that was made."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for name, folder in folders.items():
        found = json.loads((folder / FOUND).read_text(encoding="utf-8"))
        lines.append(
            (
                name,
                f"{100 * found['exact']:.2f} %",
                f"{found['parameters']:,}",
                ", ".join(map(str, found["nodes"])),
                f"{found['verdict']}, {found['apart']:.0e}",
                found["tensorrt_rtx"],
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


CELL, LEFT, TOP, ACROSS = 9, 24, 40, 3


def grid(made: list[Translation]) -> str:
    """An SVG, a small matrix each: source characters across, target characters down, darker where more weight is."""
    wide = max(LEFT + CELL * len(t.source_tokens) for t in made) + 24
    high = max(TOP + CELL * (len(t.tokens) + 1) for t in made) + 16
    parts = []
    for n, translation in enumerate(made):
        assert translation.alignment is not None
        x, y = n % ACROSS * wide + LEFT, n // ACROSS * high + TOP
        parts.append(f'<text x="{x}" y="{y - 20}" font-weight="bold">{translation.text}</text>')
        columns = [*translation.source_tokens[:-1], "¶"]
        parts += [f'<text x="{x + CELL * i}" y="{y - 4}">{escape(c.strip())}</text>' for i, c in enumerate(columns)]
        for j, row in enumerate(translation.alignment):
            label = [*translation.tokens, "¶"][j]
            parts.append(f'<text x="{x - 12}" y="{y + CELL * (j + 1) - 1}">{label}</text>')
            parts += [
                f'<rect x="{x + CELL * i}" y="{y + CELL * j}" width="{CELL}" height="{CELL}" fill-opacity="{w:.2f}"/>'
                for i, w in enumerate(row)
                if w >= 0.02
            ]
        box = f'width="{CELL * len(columns)}" height="{CELL * len(translation.alignment)}"'
        parts.append(f'<rect x="{x}" y="{y}" {box} style="fill:none" stroke="#999"/>')
    size = f'width="{ACROSS * wide}" height="{-(-len(made) // ACROSS) * high}"'
    style = "<style>text{font:9px monospace;fill:#222}rect{fill:#1f5fa8}</style>"
    ground = '<rect width="100%" height="100%" style="fill:white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', style, ground, *parts, "</svg>", ""])


def aligned(folders: dict[str, Path]) -> list[Translation]:
    """What each kind makes of one date, called by the kind's name; those without alignments are left out."""
    made = []
    for name, folder in folders.items():
        [translation] = Translator.open(folder / "bundle.zip", options=ONE_THREAD).translate([DATE], beam=1)
        if translation.alignment is not None:
            made.append(dataclasses.replace(translation, text=f"{name}: {translation.text}"))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", action="append", choices=KINDS, help="Only this one; may be given again.")
    options = parser.parse_args()
    folders = {name: options.out / re.sub("[^a-z]+", "-", name) for name in KINDS}
    for name in options.kind or KINDS:
        if not (folders[name] / FOUND).exists():
            make(name, folders[name], options.data)
    made = {name: folder for name, folder in folders.items() if (folder / FOUND).exists()}
    print(table(made))
    write_svg(options.out / "alignments.svg", grid(aligned(made)))


if __name__ == "__main__":
    main()
