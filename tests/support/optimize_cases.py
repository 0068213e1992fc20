"""What the tests of `edge-attn optimize` do to a bundle."""

from __future__ import annotations

from pathlib import Path

import onnx

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import write_bundle
from edge_attn.runtimes.optimize.optimize import optimize


def quietly(path: Path, target: str = "trt", precision: str = "fp16", **options: object) -> list[str]:
    said: list[str] = []
    assert optimize(path, target, precision, threads=1, say=said.append, **options) == 0
    return said


def planted(path: Path, graph: str, change) -> Path:
    """The bundle at `path` with one of its graphs changed, whole by its hashes."""
    bundle = Bundle.open(path)
    files = bundle.files()
    model = onnx.load_model_from_string(files[f"graphs/{graph}.onnx"])
    change(model)
    files[f"graphs/{graph}.onnx"] = model.SerializeToString()
    write_bundle(path, bundle.manifest, files, force=True)
    return path
