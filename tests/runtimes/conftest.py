"""Shared fixtures: a simulated Jetson with fake TensorRT and CUDA in host memory, and the toy bundle."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_cuda
import fake_trt
import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.parity import golden, reader
from edge_attn.runtimes.base import open_runtime
from edge_attn.runtimes.trt import builder
from edge_attn.runtimes.trt import runtime as trt
from edge_attn.runtimes.trt.api import Capability, TensorRT
from edge_attn.runtimes.trt.cudart import Cuda
from edge_attn.runtimes.trt.runtime import Trt
from edge_attn.spec import GraphSpec

BUCKETS = {"batch": [1, 8, 32], "src": [6, 12], "beam": 5}


@dataclass
class Jetson:
    """A simulated Jetson: its fake CUDA, and the graphs whose engines were built on it."""

    cache: Path
    cuda: Any = field(default_factory=fake_cuda.FakeCuda)
    built: list[str] = field(default_factory=list)
    change: Callable[[bytes], bytes] = bytes
    """Change applied to each engine that the builder returns."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds that a run of an engine takes on the fake clock, by the file of its graph."""
    version: tuple[int, ...] = (10, 3, 0)

    def tensorrt(self, rtx: bool = False) -> TensorRT:
        version = (1, 7, 1) if rtx else self.version
        name = f"tensorrt{'-rtx' if rtx else ''} {'.'.join(map(str, version))}"
        return TensorRT(fake_trt.FakeTrt(self.cuda), Capability(version, rtx), name)

    def build(self, tensorrt: TensorRT, model: bytes, spec: GraphSpec, profiles: Sequence[Any], *_: Any) -> bytes:
        self.built.append(spec.file)
        loops = "encoder" in spec.file  # TensorRT makes a loop of a recurrent layer
        shapes, seconds = [profile.shapes(spec) for profile in profiles], self.seconds.get(spec.file, 0.0)
        return self.change(fake_trt.build(model, shapes, loops=loops, seconds=seconds))

    def open(self, bundle: Bundle, **options: Any) -> Trt:
        return Trt(bundle, RuntimeOptions(cache_dir=self.cache, **options))

    def ready(self, path: Path, **buckets: Any) -> Bundle:
        """Open a bundle with a `trt` target of its portable graphs: ONNX Runtime runs function bodies too."""
        opened = Bundle.open(path)
        settings = {"build": {"buckets": {**BUCKETS, **buckets}}}
        target = Target("trt", "fp32", opened.manifest.graphs, settings)
        return Bundle(path, dataclasses.replace(opened.manifest, targets={target.name: target}), opened.files())


@pytest.fixture
def jetson(monkeypatch, tmp_path) -> Iterator[Jetson]:
    """Simulate a Jetson, and check that the test closes everything that it opens there."""
    machine = Jetson(tmp_path / "cache")
    monkeypatch.setattr(trt, "load_tensorrt", machine.tensorrt)
    monkeypatch.setattr(trt, "open_cuda", lambda: Cuda(machine.cuda))
    monkeypatch.setattr(builder, "build_engine", machine.build)
    yield machine
    gc.collect()
    assert machine.cuda.leaks() == []


@pytest.fixture
def bundle(jetson, toy_bundle) -> Bundle:
    return jetson.ready(toy_bundle)


@pytest.fixture
def runtime(jetson, bundle) -> Iterator[Trt]:
    opened = jetson.open(bundle)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def sources(toy_bundle) -> tuple[tuple[int, ...], ...]:
    return reader.load(Bundle.open(toy_bundle)).sources


@pytest.fixture
def copied(toy_bundle, tmp_path) -> Path:
    """Return a copy of the toy bundle, to write to."""
    return Path(shutil.copy(toy_bundle, tmp_path / "toy.zip"))


@pytest.fixture(scope="session")
def opened(toy_bundle) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture(scope="session")
def toy(opened) -> Any:
    """Open the toy bundle on the CPU."""
    return open_runtime(opened, "ort-cpu", RuntimeOptions(threads=1))


@pytest.fixture(scope="session")
def toy_golden(opened) -> golden.Golden:
    return reader.load(opened)


@pytest.fixture
def translate(edge_attn_cli, toy_bundle, tmp_path):
    """Translate bytes with the toy model; `code` and `error` are those of `edge_attn_cli`."""

    def run(lines: bytes, *options: object, **expected: object):
        path = tmp_path / "input"
        path.write_bytes(lines)
        return edge_attn_cli("translate", toy_bundle, "--input", path, *options, **expected)

    return run
