"""The bundle and the sentences of the GPU benchmark: targets made for what it does, and lines where none are given."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from bench_decode import Sources
from gpu_machine import BYTES

from edge_attn.bundle.bundle import Bundle
from edge_attn.parity import golden
from edge_attn.text.corpus import read_pairs

TARGETS = [(target, precision) for target in ("ort-cuda", "trt") for precision in BYTES]
PROFILES = """max_build_minutes = {minutes}

[buckets]
batch = [1, 32]
beam = 1
"""
"""Engines are tuned for the widest beam that they take, and the benchmark decodes greedily."""
Attempt = Callable[..., object]
"""Of a name, a function and its arguments: notes why it could not, where it could not."""


def with_targets(bundle: Path, folder: Path, minutes: float, attempt: Attempt) -> Path:
    """A copy of `bundle` in `folder` with the TARGETS, each engine built in `minutes` at most; needs onnx."""
    made = folder / bundle.name
    if bundle.is_dir():
        shutil.copytree(bundle, made)
    else:
        shutil.copy(bundle, made)
    profiles = folder / "profiles.toml"
    profiles.write_text(PROFILES.format(minutes=minutes), encoding="utf-8")
    for target, precision in TARGETS:
        attempt(f"optimize {target} {precision}", _optimize, made, target, precision, profiles)
    return made


def _optimize(bundle: Path, target: str, precision: str, profiles: Path) -> None:
    from edge_attn.runtimes.optimize.optimize import optimize

    options = {"profiles": profiles} if target == "trt" else {}
    optimize(bundle, target, precision, force=True, log=lambda line: None, **options)


def read_sources(bundle: Path, corpus: Path | None, count: int) -> Sources:
    """Some `count` of the file's different source lines, or of the golden sentences, the shortest first."""
    opened = Bundle.open(bundle)
    lines = golden.load(opened.read).sentences if corpus is None else [source for source, _ in read_pairs(corpus)]
    lines = list(dict.fromkeys(lines))
    text = opened.text()
    some = map(text.encode_source, lines[:: max(1, len(lines) // count)][:count])
    return sorted((source for source in some if len(source) <= opened.manifest.max_source), key=len)
