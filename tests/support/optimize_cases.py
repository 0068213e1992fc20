"""Helpers of the tests of `edge-attn optimize`."""

from __future__ import annotations

from pathlib import Path

import onnx

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import write_bundle
from edge_attn.runtimes.optimize.optimize import optimize


def run_optimize(path: Path, target: str = "trt", precision: str = "fp16", **options: object) -> list[str]:
    """Run optimize, which must succeed, and return its lines."""
    lines: list[str] = []
    assert optimize(path, target, precision, threads=1, log=lines.append, **options) == 0
    return lines


def change_graph(path: Path, graph: str, change) -> Path:
    """Change one graph of the bundle at `path`, with its hash."""
    bundle = Bundle.open(path)
    files = bundle.files()
    model = onnx.load_model_from_string(files[f"graphs/{graph}.onnx"])
    change(model)
    files[f"graphs/{graph}.onnx"] = model.SerializeToString()
    write_bundle(path, bundle.manifest, files, force=True)
    return path
