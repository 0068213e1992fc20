"""Train and deploy every kind of attention on dates: the table and the picture of docs/attention.md.

    python tests/tools/attention_kinds.py FOLDER-OF-DATES --out FOLDER [--kind NAME ...]

Each kind is edge_attn/pretrained/date.toml with its own options, trained on one thread, exported and verified. Greedy
search on 5,000 held-out dates gives the exact match. TensorRT-RTX parses and builds the graphs on the CPU. A kind whose
result FOLDER already contains is not trained again, so a stopped run can be continued. Prints the table of the results
in FOLDER, and writes the alignments of all kinds on one date into FOLDER/alignments.svg.
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
from edge_attn.parity import reader
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
HEAD = ("Kind", "Exact match", "Parameters", "From the reference, at most", "TensorRT-RTX")
RESULT = "result.json"


def verb(name: str) -> Any:
    return resolve("verb", VERBS, name)


def configuration(options: dict[str, Any]) -> str:
    """Return the base configuration with `options` in its table `model`."""
    text = BASE.read_text(encoding="utf-8")
    for key, value in options.items():
        line = f"{key} = {json.dumps(value)}"
        text, replacements = re.subn(rf"(?m)^{key} = .*$", line, text)
        if not replacements:
            text = text.replace("[model]", f"[model]\n{line}")
    return text


def build(name: str, folder: Path, data: Path) -> None:
    """Train, export, verify and score one kind in `folder`."""
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
    exported = Bundle.open(bundle)
    report = check(exported, OrtCpu(exported, ONE_THREAD), reader.load(exported))
    measured = [m for level in report.levels for m in level.measurements]
    [max_abs] = [m.value for m in measured if (m.level, m.name) == ("L2", "log_prob")]
    result = {
        "max_abs": max_abs,
        "exact": scored.exact,
        "parameters": manifest.provenance["parameters"],
        "seconds": round(seconds),
        "sentences": scored.sentences,
        "tensorrt_rtx": on_tensorrt(bundle, folder),
        "verdict": report.verdict,
    }
    (folder / RESULT).write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def on_tensorrt(bundle: Path, folder: Path) -> str:
    """Return `builds`, or the first error of TensorRT-RTX on a graph of the bundle."""
    copy = folder / "trt.zip"
    shutil.copy(bundle, copy)
    optimize(copy, "trt", "fp32", threads=1, log=lambda line: None)
    optimized, tensorrt = Bundle.open(copy), load_tensorrt(rtx=True)
    for spec in optimized.target("trt", "fp32").graphs.values():
        model = optimized.read(spec.file)
        for answer in (parses(tensorrt, model), builds(tensorrt, optimized, model, spec)):
            if answer != "yes":
                return answer
    return "builds"


def table(folders: dict[str, Path]) -> str:
    """Return the Markdown table with a row for each result."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for name, folder in folders.items():
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        lines.append(
            (
                name,
                f"{100 * result['exact']:.2f} %",
                f"{result['parameters']:,}",
                f"{result['verdict']}, {result['max_abs']:.0e}",
                result["tensorrt_rtx"],
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


CELL, LEFT, TOP, COLUMNS = 9, 24, 40, 3


def grid(translations: list[Translation]) -> str:
    """Return an SVG with one matrix per kind: source characters across, target characters down, dark is much weight."""
    width = max(LEFT + CELL * len(t.source_tokens) for t in translations) + 24
    height = max(TOP + CELL * (len(t.tokens) + 1) for t in translations) + 16
    parts = []
    for n, translation in enumerate(translations):
        assert translation.alignment is not None
        x, y = n % COLUMNS * width + LEFT, n // COLUMNS * height + TOP
        parts.append(f'<text x="{x}" y="{y - 20}" font-weight="bold">{translation.text}</text>')
        source = [*translation.source_tokens[:-1], "¶"]
        parts += [f'<text x="{x + CELL * i}" y="{y - 4}">{escape(c.strip())}</text>' for i, c in enumerate(source)]
        for j, row in enumerate(translation.alignment):
            label = [*translation.tokens, "¶"][j]
            parts.append(f'<text x="{x - 12}" y="{y + CELL * (j + 1) - 1}">{label}</text>')
            parts += [
                f'<rect x="{x + CELL * i}" y="{y + CELL * j}" width="{CELL}" height="{CELL}" fill-opacity="{w:.2f}"/>'
                for i, w in enumerate(row)
                if w >= 0.02
            ]
        box = f'width="{CELL * len(source)}" height="{CELL * len(translation.alignment)}"'
        parts.append(f'<rect x="{x}" y="{y}" {box} style="fill:none" stroke="#999"/>')
    size = f'width="{COLUMNS * width}" height="{-(-len(translations) // COLUMNS) * height}"'
    style = "<style>text{font:9px monospace;fill:#222}rect{fill:#1f5fa8}</style>"
    background = '<rect width="100%" height="100%" style="fill:white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', style, background, *parts, "</svg>", ""])


def aligned(folders: dict[str, Path]) -> list[Translation]:
    """Return each kind's translation of one date, with the kind's name, for the kinds that have alignments."""
    translations = []
    for name, folder in folders.items():
        [translation] = Translator.open(folder / "bundle.zip", options=ONE_THREAD).translate([DATE], beam=1)
        if translation.alignment is not None:
            translations.append(dataclasses.replace(translation, text=f"{name}: {translation.text}"))
    return translations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", action="append", choices=KINDS, help="Only this kind; repeatable.")
    options = parser.parse_args()
    folders = {name: options.out / re.sub("[^a-z]+", "-", name) for name in KINDS}
    for name in options.kind or KINDS:
        if not (folders[name] / RESULT).exists():
            build(name, folders[name], options.data)
    complete = {name: folder for name, folder in folders.items() if (folder / RESULT).exists()}
    print(table(complete))
    write_svg(options.out / "alignments.svg", grid(aligned(complete)))


if __name__ == "__main__":
    main()
