"""Of two engines of one graph the quicker one runs, and without a plugin the inlined one; on the fake (conftest.py)."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path

import fake_trt
import numpy as np
import pytest

from edge_attn import golden
from edge_attn.bundle import Bundle
from edge_attn.config import RuntimeOptions, SearchConfig
from edge_attn.errors import BundleError, InputError, NotTestedError
from edge_attn.search import search
from runtimes import trt_build, trt_choice
from runtimes.cache import clear_cache
from runtimes.ort import OrtCpu
from runtimes.plugins import Plugin, additive_attention
from runtimes.trt import Trt, TrtRtx
from runtimes.trt_choice import TURNS, WARM, plugins_of
from runtimes.verify import check

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
    plugin = Plugin("AdditiveAttention", lambda door, architecture: made.append(architecture), lambda: "abc")
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
        def build(door, model, spec, *rest):
            made = jetson.build(door, model, spec, *rest)
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


@pytest.mark.parametrize(
    ("inlined", "plugin", "expected"),
    [(SLOW, QUICK, WITH), (QUICK, SLOW, WITHOUT), (1.0, 0.97, WITH), (1.0, 0.99, WITHOUT)],
)
def test_the_quicker_engine_runs(jetson, both, sources, capsys, registered, inlined, plugin, expected):
    jetson.seconds = {STEP: inlined, VARIANT: plugin}
    assert runs(jetson, both, sources) == expected
    said = capsys.readouterr().err.splitlines()
    times = f"{1e3 * plugin:.3f} ms with it and {1e3 * inlined:.3f} ms without"
    name = expected.removeprefix("step ")
    assert said[-1] == (
        f"{both.path.name}: step for trt-fp32 runs {name}: one run takes {times} (batch 1, src 8); "
        f"{times} (batch 32, src 20)"
    )
    assert (
        f"{both.path.name}: step with AdditiveAttention for trt-fp32: building the engine (there is none yet)" in said
    )
    assert jetson.built == ["graphs/encoder.onnx", STEP, VARIANT]
    assert registered == ["sm_87"]


def test_what_is_timed_is_the_cuda_graph(jetson, both):
    jetson.open(both).close()
    assert jetson.cuda.calls["cudaGraphLaunch"] == 2 * BUCKETS * (WARM + TURNS - 1)
    assert jetson.cuda.calls["cudaGraphExecDestroy"] == 2 * BUCKETS


def test_verify_runs_on_the_engine_that_was_chosen(jetson, both):
    runtime = jetson.open(both)
    report = check(both, runtime, golden.load(both.read))
    assert runtime._launches._engines["step"].seconds == QUICK
    runtime.close()
    assert report.verdict == "holds", str(report)
    assert WITH in report.provider


@pytest.mark.parametrize("expected", [WITH, WITHOUT])
def test_the_choice_is_remembered(jetson, both, sources, capsys, expected):
    jetson.seconds[VARIANT] = QUICK if expected == WITH else 2 * SLOW
    assert runs(jetson, both, sources) == expected
    if expected == WITHOUT:  # then its engine is not even read
        lose("step with AdditiveAttention")(jetson.cache)
    capsys.readouterr()
    launched = jetson.cuda.calls["cudaGraphLaunch"]
    jetson.open(both).close()
    assert jetson.cuda.calls["cudaGraphLaunch"] == launched
    assert runs(jetson, both, sources) == expected
    assert capsys.readouterr().err == ""
    assert len(jetson.built) == 3


def clear(cache: Path) -> None:
    clear_cache(cache)
    assert not list(cache.rglob("*.timing"))


def lose(which: str) -> Callable[[Path], None]:
    """Takes one of the engines away, and leaves the choice."""

    def remove(cache: Path) -> None:
        (record,) = [path for path in (cache / "engines").glob("*.json") if f": {which} for" in path.read_text()]
        record.unlink()

    return remove


def damage(cache: Path) -> None:
    (record,) = (cache / "engines").glob("tensorrt-choice-*.timing")
    record.write_text('{"plugin": true}')


AGAIN = {"cleared": clear, "inlined lost": lose("step"), "plugin lost": lose("step with AdditiveAttention")}


@pytest.mark.parametrize("what", [*AGAIN, "damaged"])
def test_engines_that_are_built_again_are_measured_again(jetson, both, sources, what):
    assert runs(jetson, both, sources) == WITH
    {**AGAIN, "damaged": damage}[what](jetson.cache)
    before = jetson.cuda.calls["cudaGraphExecDestroy"]
    jetson.seconds = {STEP: QUICK, VARIANT: SLOW} if what == "cleared" else jetson.seconds
    assert runs(jetson, both, sources) == (WITHOUT if what == "cleared" else WITH)
    assert jetson.cuda.calls["cudaGraphExecDestroy"] - before >= 2 * BUCKETS


def test_a_cache_that_keeps_no_choice_is_no_fault(jetson, both, sources, monkeypatch):
    def refuse(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trt_choice, "write_whole", refuse)
    assert runs(jetson, both, sources) == runs(jetson, both, sources) == WITH


# ---- where the plugin cannot be had


def no_compiler(door, architecture):
    raise NotTestedError("a plugin needs a CUDA compiler, and there is none")


def broken(door, architecture):
    raise ValueError("TensorRT changed its mind")


NOT_HAD = {
    "10.3": ({"version": (10, 3, 0)}, "tensorrt 10.3.0 takes no ahead-of-time plugin, TensorRT 10.13 and newer do"),
    "no compiler": ({"register": no_compiler}, "a plugin needs a CUDA compiler, and there is none"),
    "a fault of ours": ({"register": broken}, "ValueError: TensorRT changed its mind"),
    "unknown": ({"ops": ["Gru"]}, "there is no plugin 'Gru' for the target 'trt'; known: AdditiveAttention"),
    "no file": ({"file": "elsewhere.onnx"}, "elsewhere.onnx is missing"),
    "too little memory": ({"fault": NotTestedError("step: memory ran out")}, "step: memory ran out"),
}


@pytest.mark.parametrize("what", NOT_HAD)
def test_without_the_plugin_the_inlined_graph_runs_and_one_line_says_why(
    jetson, both, sources, monkeypatch, capsys, built_as, what
):
    given, why = NOT_HAD[what]
    jetson.version = given.get("version", jetson.version)
    plugins = {"ops": given.get("ops", PLUGINS["ops"]), "graphs": {"step": given.get("file", VARIANT)}}
    if "register" in given:
        broken_plugin = dataclasses.replace(additive_attention.PLUGIN, register=given["register"])
        monkeypatch.setattr(additive_attention, "PLUGIN", broken_plugin)
    if "fault" in given:
        built_as(raising(given["fault"]))
    bundle = with_plugins(both, plugins)
    for _ in range(2):  # what was missing may be there the next time, so it is tried again
        runtime = jetson.open(bundle)
        assert f"; step without the plugin {plugins['ops'][0]}; buffers" in runtime.provider
        assert tokens(runtime, sources) == tokens(OrtCpu(bundle, RuntimeOptions(threads=1)), sources)
        runtime.close()
        (said,) = [line for line in capsys.readouterr().err.splitlines() if " runs with" in line]
        assert said.startswith(f"{both.path.name}: step for trt-fp32 runs without the plugin {plugins['ops'][0]}: ")
        assert said.endswith(why)


def test_on_tensorrt_rtx_the_inlined_graph_runs(jetson, both, sources, capsys):
    runtime = TrtRtx(both, RuntimeOptions(cache_dir=jetson.cache))
    assert tokens(runtime, sources) == tokens(OrtCpu(both, RuntimeOptions(threads=1)), sources)
    runtime.close()
    assert "tensorrt-rtx 1.7.1 takes no ahead-of-time plugin" in capsys.readouterr().err
    assert VARIANT not in jetson.built


def raising(error: Exception) -> Callable[[bytes], bytes]:
    def fail(plan: bytes) -> bytes:
        raise error

    return fail


def smaller(plan: bytes) -> bytes:
    """Profiles that take no request."""
    profiles = [{name: 3 * [len(s[0]) * [1]] for name, s in one.items()} for one in fake_trt.header(plan)[0]]
    return fake_trt.build(fake_trt.model(plan), profiles)


ILLEGAL = "CUDA failed in cudaStreamSynchronize: cudaErrorIllegalAddress: an illegal memory access was encountered"
FAILS = {
    "its kernel goes astray": (raising(NotTestedError(ILLEGAL)), "illegal memory access"),
    "its build fails": (raising(InputError("step.plugins.onnx cannot be built: no such plugin")), "no such plugin"),
    "TensorRT does not load it": (lambda plan: b"JUNK" + plan, "Magic tag does not match"),
    "it is another graph's": (
        lambda plan: plan.replace(b"log_probs", b"log_prods"),
        "the engine of step with AdditiveAttention is not this bundle's: its log_pro",
    ),
    "it does not run": (smaller, "does not satisfy profile 0"),
}


@pytest.mark.parametrize("what", FAILS)
def test_what_fails_once_is_not_tried_at_every_opening(jetson, both, sources, capsys, built_as, what):
    change, why = FAILS[what]
    built_as(change)
    assert runs(jetson, both, sources) == WITHOUT
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"{both.path.name}: step for trt-fp32 runs without the plugin AdditiveAttention: ")
    assert why in said
    built = len(jetson.built)
    assert runs(jetson, both, sources) == WITHOUT
    assert capsys.readouterr().err == ""
    assert len(jetson.built) == built


def test_what_failed_is_tried_again_with_another_configuration(jetson, both, sources, built_as):
    built_as(raising(NotTestedError("step: the build took longer than 60 minutes and was ended")))
    assert runs(jetson, both, sources) == WITHOUT
    built_as(bytes)
    target = both.manifest.targets["trt-fp32"]
    settings = {**target.settings, "build": {**target.settings["build"], "max_build_minutes": 120.0}}
    targets = {target.name: dataclasses.replace(target, settings=settings)}
    again = Bundle(both.path, dataclasses.replace(both.manifest, targets=targets), both._files)
    assert runs(jetson, both, sources) == WITHOUT
    assert runs(jetson, again, sources) == WITH


def test_a_chosen_engine_that_is_refused_later_gives_way(jetson, both, sources, capsys, monkeypatch):
    assert runs(jetson, both, sources) == WITH
    capsys.readouterr()
    load = fake_trt.Runtime.deserialize_cuda_engine

    def refuse(runtime, plan):
        if fake_trt.header(plan)[3] == QUICK:
            runtime._log.log(fake_trt.ILogger.ERROR, "the driver is too old for its PTX")
            return None
        return load(runtime, plan)

    monkeypatch.setattr(fake_trt.Runtime, "deserialize_cuda_engine", refuse)
    assert runs(jetson, both, sources) == WITHOUT
    (said,) = capsys.readouterr().err.splitlines()
    assert "runs without the plugin AdditiveAttention: tensorrt 10.13.2 does not load the engine of step: the" in said
    assert runs(jetson, both, sources) == WITHOUT
    assert capsys.readouterr().err == ""
    assert len(jetson.built) == 3


def test_a_build_that_is_interrupted_is_interrupted(jetson, both, built_as):
    def interrupt(plan: bytes) -> bytes:
        raise KeyboardInterrupt

    built_as(interrupt)
    with pytest.raises(KeyboardInterrupt):
        jetson.open(both)


@pytest.mark.parametrize(
    "plugins", [["AdditiveAttention"], {"ops": []}, {"ops": 3, "graphs": {}}, {"ops": [], "graphs": 3}]
)
def test_a_bundle_that_names_them_in_another_way(jetson, both, plugins):
    with pytest.raises(BundleError, match=r"trt-fp32: plugins: expected ops and the file .* optimize --force"):
        jetson.open(with_plugins(both, plugins))


def test_a_bundle_without_variants(jetson, both):
    assert plugins_of(both.manifest.targets["trt-fp32"]) == (("AdditiveAttention",), {"step": VARIANT})
    assert plugins_of(with_plugins(both, []).manifest.targets["trt-fp32"]) == ((), {})
    assert plugins_of(jetson.ready(both.path).manifest.targets["trt-fp32"]) == ((), {})


def test_what_optimize_offers_is_what_is_decided_on(jetson, copied, capsys):
    pytest.importorskip("onnx", reason="torch is not installed: a device needs none")
    optimize = importlib.import_module("runtimes.optimize").optimize
    profiles = copied.with_name("profiles.toml")
    profiles.write_text("[buckets]\nbatch = [32]\nsrc = [8]\n")
    said: list[str] = []
    options = {"profiles": profiles, "build": True, "cache_dir": jetson.cache, "say": said.append}
    assert optimize(copied, "trt", "fp32", plugins=("AdditiveAttention",), **options) == 0, said
    assert f"; {WITHOUT}; buffers of" in said[-1]
    assert "tensorrt 10.3.0 takes no ahead-of-time plugin, TensorRT 10.13 and newer do" in capsys.readouterr().err
    target = Bundle.open(copied).manifest.targets["trt-fp32"]
    assert plugins_of(target) == (("AdditiveAttention",), {"step": VARIANT})


def test_every_graph_takes_the_numbers_that_it_is_timed_on(opened):
    for spec in opened.manifest.graphs.values():
        for tensor in spec.inputs:
            made = trt_choice._filled(tensor, tuple(2 for _ in tensor.shape))
            assert made.dtype == tensor.dtype
            assert np.isfinite(made.astype(float)).all()
            assert made.all() == (tensor.dtype not in ("int64", "int32"))
