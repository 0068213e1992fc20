"""Processes that build an engine of a cache and take a chosen time for it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

from edge_attn.runtimes.trt.engine_cache import EngineCache
from edge_attn.runtimes.trt.engine_key import EngineKey

KEY = EngineKey(
    label="toy.zip: step for trt-fp16",
    graph="ab" * 32,
    runtime="tensorrt 10.3.0",
    gpu="Orin",
    compute_capability="8.7",
    precision="fp16",
    profiles="batch 1-8 (8)",
    plugins="none",
    settings="workspace 1024 MB, level 3",
)
ENGINE = bytes(range(256)) * 40

BUILD = """
import sys, time
from pathlib import Path
from edge_attn.runtimes.trt.engine_cache import EngineCache
from edge_attn.runtimes.trt.engine_key import EngineKey

def build():
    with open({log!r}, "a") as file:
        file.write("built ")
    time.sleep({seconds})
    return {engine!r}

key = EngineKey(**{key!r})
engine = EngineCache(Path({folder!r})).build_once(key, build, lambda text: print(text, flush=True))
print(len(engine))
"""


def start(folder: Path, seconds: float, before: str = "") -> subprocess.Popen[str]:
    """Start a process whose build takes `seconds`, after the statements `before`."""
    code = before + BUILD.format(
        log=str(folder / "log"), seconds=seconds, engine=ENGINE, key=dataclasses.asdict(KEY), folder=str(folder)
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def build(cache: EngineCache, key: EngineKey = KEY, engine: bytes = ENGINE) -> list[str]:
    """Build the engine, or read it. Return the logged lines, none if it was read."""
    lines: list[str] = []
    assert cache.build_once(key, lambda: engine, lines.append) == engine
    return lines


def files(folder: Path) -> set[str]:
    return {path.suffix for path in (folder / "engines").iterdir()}


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.01)
