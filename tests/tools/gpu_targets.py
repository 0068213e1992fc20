"""Targets and sentences of the GPU benchmark."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from bench_decode import Sources
from gpu_machine import BYTES

from edge_attn.bundle.bundle import Bundle
from edge_attn.parity import reader
from edge_attn.text.corpus import read_pairs

TARGETS = [(target, precision) for target in ("ort-cuda", "trt") for precision in BYTES]
PROFILES = """max_build_minutes = {minutes}

[buckets]
batch = [1, 32]
beam = 1
"""
"""Profiles for a beam of one: engines are tuned for their widest beam, and the benchmark decodes greedily."""
Attempt = Callable[..., object]
"""Takes a name, a function and its arguments; records the reason if the function fails."""


def with_targets(bundle: Path, folder: Path, minutes: float, attempt: Attempt) -> Path:
    """Return a copy of `bundle` with the TARGETS; needs onnx.

    Args:
        bundle: bundle folder or its zip.
        folder: folder of the copy.
        minutes: time limit per engine build.
        attempt: calls a function and records the reason if it fails.
    """
    copy = folder / bundle.name
    if bundle.is_dir():
        shutil.copytree(bundle, copy)
    else:
        shutil.copy(bundle, copy)
    profiles = folder / "profiles.toml"
    profiles.write_text(PROFILES.format(minutes=minutes), encoding="utf-8")
    for target, precision in TARGETS:
        attempt(f"optimize {target} {precision}", _optimize, copy, target, precision, profiles)
    return copy


def _optimize(bundle: Path, target: str, precision: str, profiles: Path) -> None:
    from edge_attn.runtimes.optimize.optimize import optimize

    options = {"profiles": profiles} if target == "trt" else {}
    optimize(bundle, target, precision, force=True, log=lambda line: None, **options)


def read_sources(bundle: Path, corpus: Path | None, count: int) -> Sources:
    """Return `count` distinct source lines of the file, or golden sentences, encoded, the shortest first."""
    opened = Bundle.open(bundle)
    lines = reader.load(opened).sentences if corpus is None else [source for source, _ in read_pairs(corpus)]
    lines = list(dict.fromkeys(lines))
    text = opened.text()
    encoded = map(text.encode_source, lines[:: max(1, len(lines) // count)][:count])
    return sorted((source for source in encoded if len(source) <= opened.manifest.max_source), key=len)
