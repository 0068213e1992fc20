"""What the tests of the choice between two engines share: a bundle with both graphs, and what runs its step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.beam_search import search
from edge_attn.decoding.options import SearchConfig
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.trt import autotune as trt_choice
from edge_attn.runtimes.trt import builder as trt_build
from edge_attn.runtimes.trt.plugins import Plugin, additive_attention
from edge_attn.runtimes.trt.runtime import Trt

STEP, VARIANT = "graphs/step.onnx", "targets/trt-fp32/step.plugins.onnx"
PLUGINS = {"ops": ["AdditiveAttention"], "graphs": {"step": VARIANT}}
QUICK, SLOW = 0.001, 0.003
WITH = "step with the plugin AdditiveAttention"
WITHOUT = "step without the plugin AdditiveAttention"
BUCKETS = 4


def with_plugins(bundle: Bundle, plugins: object) -> Bundle:
    """The step graph has a variant, which is the same graph: the fake's ONNX Runtime has no plugins."""
    target = bundle.manifest.targets["trt-fp32"]
    target = dataclasses.replace(target, settings={**target.settings, "plugins": plugins})
    files = {**bundle.files(), VARIANT: bundle.read(STEP)}
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, targets={target.name: target}), files)


@pytest.fixture
def registered(monkeypatch) -> list[str]:
    """The architectures that the plugin was registered for."""
    made: list[str] = []
    plugin = Plugin("AdditiveAttention", lambda tensorrt, architecture: made.append(architecture), lambda: "abc")
    monkeypatch.setattr(additive_attention, "PLUGIN", plugin)
    return made


@pytest.fixture
def both(jetson, toy_bundle, monkeypatch, registered) -> Bundle:
    """A bundle with both graphs, on a TensorRT that takes plugins and a device whose clock the test holds."""
    jetson.version = (10, 13, 2)
    jetson.seconds = {STEP: SLOW, VARIANT: QUICK}
    monkeypatch.setattr(trt_choice, "perf_counter", lambda: jetson.cuda.seconds)
    return with_plugins(jetson.ready(toy_bundle, batch=[1, 32], src=[8]), PLUGINS)


@pytest.fixture
def built_as(jetson, monkeypatch) -> Callable[[Callable[[bytes], bytes]], None]:
    """built_as(change): from now on `change` is what happens to the plugin's engine on its way from the builder."""

    def plant(change: Callable[[bytes], bytes]) -> None:
        def build(tensorrt, model, spec, *rest):
            made = jetson.build(tensorrt, model, spec, *rest)
            return change(made) if spec.file == VARIANT else made

        monkeypatch.setattr(trt_build, "build_engine", build)

    return plant


def tokens(runtime: Trt | OrtCpu, sources) -> list[tuple[int, ...]]:
    return [found[0].tokens for found in search(runtime, sources[:8], SearchConfig(beam=4, max_length=20))]


def runs(jetson, bundle: Bundle, sources) -> str:
    """What runs the step, once it has said what the CPU says."""
    runtime = jetson.open(bundle)
    found = tokens(runtime, sources)
    seconds = runtime._launches._engines["step"].seconds
    provider = runtime.provider
    runtime.close()
    assert found == tokens(OrtCpu(bundle, RuntimeOptions(threads=1)), sources)
    said = WITH if seconds == jetson.seconds[VARIANT] else WITHOUT
    assert f"; {said}; buffers of" in provider
    return said


def raising(error: Exception) -> Callable[[bytes], bytes]:
    def fail(plan: bytes) -> bytes:
        raise error

    return fail
