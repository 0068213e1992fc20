"""Bundle with a plugin variant of its step graph, for the tests of the measured choice between both engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.beam_search import search
from edge_attn.decoding.options import SearchConfig
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.trt import autotune, builder
from edge_attn.runtimes.trt.plugins import Plugin, additive_attention
from edge_attn.runtimes.trt.runtime import Trt, open_engines

STEP, VARIANT = "graphs/step.onnx", "targets/trt-fp32/step.plugins.onnx"
PLUGINS = {"ops": ["AdditiveAttention"], "graphs": {"step": VARIANT}}
FAST, SLOW = 0.001, 0.003
WITH = "step with the plugin AdditiveAttention"
WITHOUT = "step without the plugin AdditiveAttention"
BUCKETS = 4


def with_plugins(bundle: Bundle, plugins: object) -> Bundle:
    """Add a variant of the step graph, which is the same graph: the fake's ONNX Runtime has no plugins."""
    target = bundle.manifest.targets["trt-fp32"]
    target = dataclasses.replace(target, settings={**target.settings, "plugins": plugins})
    files = {**bundle.files(), VARIANT: bundle.read(STEP)}
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, targets={target.name: target}), files)


@pytest.fixture
def registered(monkeypatch) -> list[str]:
    """Architectures that the plugin was registered for."""
    architectures: list[str] = []
    plugin = Plugin("AdditiveAttention", lambda tensorrt, architecture: architectures.append(architecture), lambda: "a")
    monkeypatch.setattr(additive_attention, "PLUGIN", plugin)
    return architectures


@pytest.fixture
def unmeasured(jetson, toy_bundle, monkeypatch, registered) -> Bundle:
    """Bundle with both step graphs, on a TensorRT that takes plugins and a device whose clock the test controls."""
    jetson.version = (10, 13, 2)
    jetson.seconds = {STEP: SLOW, VARIANT: FAST}
    monkeypatch.setattr(autotune, "perf_counter", lambda: jetson.cuda.seconds)
    return with_plugins(jetson.ready(toy_bundle, batch=[1, 32], src=[8]), PLUGINS)


def measure(jetson, bundle: Bundle) -> Bundle:
    """Measure both engines on the device and store the result in the bundle, as `optimize --build` does."""
    plugins = bundle.manifest.targets["trt-fp32"].settings["plugins"]
    measured = open_engines(bundle, RuntimeOptions(cache_dir=jetson.cache)).measure()
    return with_plugins(bundle, {**plugins, "measured": measured})


@pytest.fixture
def change_variant(jetson, monkeypatch) -> Callable[[Callable[[bytes], bytes]], None]:
    """Return a function that takes a change, which applies to each engine with the plugin from then on."""

    def plant(change: Callable[[bytes], bytes]) -> None:
        def build(tensorrt, model, spec, *rest):
            engine = jetson.build(tensorrt, model, spec, *rest)
            return change(engine) if spec.file == VARIANT else engine

        monkeypatch.setattr(builder, "build_engine", build)

    return plant


def tokens(runtime: Trt | OrtCpu, sources) -> list[tuple[int, ...]]:
    return [hypotheses[0].tokens for hypotheses in search(runtime, sources[:8], SearchConfig(beam=4, max_length=20))]


def running_step(jetson, bundle: Bundle, sources) -> str:
    """Return WITH or WITHOUT, by the engine that runs the step; its tokens must be those of the CPU."""
    runtime = jetson.open(bundle)
    actual = tokens(runtime, sources)
    seconds = runtime._launches._engines["step"].seconds
    provider = runtime.provider
    runtime.close()
    assert actual == tokens(OrtCpu(bundle, RuntimeOptions(threads=1)), sources)
    chosen = WITH if seconds == jetson.seconds[VARIANT] else WITHOUT
    assert f"; {chosen}; buffers of" in provider
    return chosen


def raising(error: BaseException) -> Callable[[bytes], bytes]:
    def fail(engine: bytes) -> bytes:
        raise error

    return fail
