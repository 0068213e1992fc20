"""The faster of two engines of one graph runs, as `optimize --build` measured it; on the fake device of conftest.py."""

from __future__ import annotations

import dataclasses
import importlib

import choices
import fake_trt
import numpy as np
import pytest
from choices import (
    BUCKETS,
    FAST,
    PLUGINS,
    SLOW,
    STEP,
    VARIANT,
    WITH,
    WITHOUT,
    measure,
    running_step,
    with_plugins,
)

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import BundleError
from edge_attn.parity import reader
from edge_attn.runtimes.trt.autotune import TIMED_RUNS, WARMUP_RUNS, _example_input, plugins_of
from edge_attn.runtimes.trt.plugins import additive_attention
from edge_attn.runtimes.verification.verify import check

registered, unmeasured = choices.registered, choices.unmeasured


@pytest.mark.parametrize(
    ("inlined", "plugin", "expected"),
    [(SLOW, FAST, WITH), (FAST, SLOW, WITHOUT), (1.0, 0.97, WITH), (1.0, 0.99, WITHOUT)],
)
def test_faster_engine_runs(jetson, unmeasured, sources, capsys, registered, inlined, plugin, expected):
    jetson.seconds = {STEP: inlined, VARIANT: plugin}
    bundle = measure(jetson, unmeasured)
    lines = capsys.readouterr().err.splitlines()
    times = f"{1e3 * plugin:.3f} ms with it and {1e3 * inlined:.3f} ms without"
    reason = f"one run takes {times} (batch 1, src 8); {times} (batch 32, src 20)"
    name = bundle.path.name
    assert lines[-1] == f"{name}: trt-fp32 runs {expected}: {reason}"
    assert f"{name}: step with AdditiveAttention for trt-fp32: building the engine (there is none yet)" in lines
    assert registered == ["sm_87"]
    measured = bundle.manifest.targets["trt-fp32"].settings["plugins"]["measured"]
    assert (measured["runtime"], measured["gpu"]) == ("tensorrt 10.13.2", "Orin, 8 SM")
    choice = measured["graphs"]["step"]
    assert (choice["plugin"], choice["reason"], len(choice["timings"])) == (expected == WITH, reason, BUCKETS)
    assert choice["timings"][0] == pytest.approx(
        {"batch": 1, "src": 8, "inlined_ms": 1e3 * inlined, "plugin_ms": 1e3 * plugin}
    )
    assert running_step(jetson, bundle, sources) == expected


def test_cuda_graphs_are_timed(jetson, unmeasured):
    measure(jetson, unmeasured)
    assert jetson.cuda.calls["cudaGraphLaunch"] == 2 * BUCKETS * (WARMUP_RUNS + TIMED_RUNS - 1)
    assert jetson.cuda.calls["cudaGraphExecDestroy"] == 2 * BUCKETS


def test_verify_runs_on_chosen_engine(jetson, unmeasured):
    bundle = measure(jetson, unmeasured)
    runtime = jetson.open(bundle)
    report = check(bundle, runtime, reader.load(bundle))
    assert runtime._launches._engines["step"].seconds == FAST
    runtime.close()
    assert report.verdict == "holds", str(report)
    assert WITH in report.provider


@pytest.mark.parametrize("expected", [WITH, WITHOUT])
def test_runtime_measures_nothing_and_builds_chosen_engine_only(jetson, unmeasured, sources, capsys, expected):
    jetson.seconds[VARIANT] = FAST if expected == WITH else 2 * SLOW
    bundle = measure(jetson, unmeasured)
    launched = jetson.cuda.calls["cudaGraphLaunch"]
    jetson.cache, jetson.built = jetson.cache / "another", []
    jetson.open(bundle).close()
    assert jetson.cuda.calls["cudaGraphLaunch"] == launched
    assert jetson.built == ["graphs/encoder.onnx", VARIANT if expected == WITH else STEP]
    capsys.readouterr()
    assert running_step(jetson, bundle, sources) == expected
    assert capsys.readouterr().err == ""


TO_MEASURE = "to measure both engines here, run: edge-attn optimize {} --target trt --precision fp32 --build"


@pytest.mark.parametrize("measured", [None, {}, {"graphs": {}}, {"graphs": {"step": {}}}])
def test_inlined_graph_runs_where_nothing_was_measured(jetson, unmeasured, sources, capsys, measured):
    bundle = unmeasured if measured is None else with_plugins(unmeasured, {**PLUGINS, "measured": measured})
    assert running_step(jetson, bundle, sources) == WITHOUT
    [line] = [line for line in capsys.readouterr().err.splitlines() if " runs " in line]
    assert line == (
        f"{bundle.path.name}: trt-fp32 runs {WITHOUT}: its engine was not measured; {TO_MEASURE.format(bundle.path)}"
    )
    assert VARIANT not in jetson.built


@pytest.mark.parametrize("what", ["tensorrt", "gpu", "kernel"])
def test_inlined_graph_runs_where_measurement_is_of_another_device(
    jetson, unmeasured, sources, capsys, monkeypatch, what
):
    bundle = measure(jetson, unmeasured)
    capsys.readouterr()
    if what == "tensorrt":
        jetson.version, difference = (10, 16, 1), "tensorrt 10.13.2, this is tensorrt 10.16.1"
    elif what == "gpu":
        jetson.cuda.name, difference = "Thor", "Orin, 8 SM, this is Thor, 8 SM"
    else:
        plugin = dataclasses.replace(additive_attention.PLUGIN, hash=lambda: "b")
        monkeypatch.setattr(additive_attention, "PLUGIN", plugin)
        difference = "AdditiveAttention a, this is AdditiveAttention b"
    assert running_step(jetson, bundle, sources) == WITHOUT
    [line] = [line for line in capsys.readouterr().err.splitlines() if " runs " in line]
    assert line.endswith(f": its engine was measured with {difference}; {TO_MEASURE.format(bundle.path)}")
    assert running_step(jetson, measure(jetson, bundle), sources) == WITH


# ---- an engine of the cache that TensorRT does not load


@pytest.fixture
def rejected(monkeypatch) -> list[float]:
    """Seconds of a run of each engine that TensorRT refuses next, each once."""
    pending: list[float] = []
    load = fake_trt.Runtime.deserialize_cuda_engine

    def refuse(runtime, plan):
        if pending and fake_trt.header(plan)[3] == pending[0]:
            pending.pop(0)
            runtime._log.log(fake_trt.ILogger.ERROR, "the driver is too old for its PTX")
            return None
        return load(runtime, plan)

    monkeypatch.setattr(fake_trt.Runtime, "deserialize_cuda_engine", refuse)
    return pending


REFUSED = "tensorrt 10.13.2 does not load the engine of step: the driver is too old for its PTX"


def test_rejected_engine_with_plugin_is_replaced_by_inlined_one(jetson, unmeasured, sources, capsys, rejected):
    bundle = measure(jetson, unmeasured)
    assert running_step(jetson, bundle, sources) == WITH
    capsys.readouterr()
    rejected.append(FAST)
    assert running_step(jetson, bundle, sources) == WITHOUT
    assert rejected == []
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{bundle.path.name}: trt-fp32 runs {WITHOUT}: {REFUSED}")


def test_rejected_inlined_engine_is_built_again(jetson, unmeasured, sources, capsys, rejected):
    assert running_step(jetson, unmeasured, sources) == WITHOUT
    capsys.readouterr()
    rejected.append(SLOW)
    assert running_step(jetson, unmeasured, sources) == WITHOUT
    runs, building = capsys.readouterr().err.splitlines()
    assert "its engine was not measured" in runs
    assert f"building the engine ({REFUSED}" in building


@pytest.mark.parametrize("seconds", [[FAST], [SLOW], [SLOW, FAST]])
def test_rejected_engine_is_built_again_to_be_timed(jetson, unmeasured, sources, rejected, seconds):
    measure(jetson, unmeasured)
    built = len(jetson.built)
    rejected += seconds
    assert running_step(jetson, measure(jetson, unmeasured), sources) == WITH
    assert rejected == []
    files = {FAST: VARIANT, SLOW: STEP}
    assert sorted(jetson.built[built:]) == sorted(["graphs/encoder.onnx", *(files[value] for value in seconds)])


# ---- the settings of the bundle


@pytest.mark.parametrize("plugins", [["AdditiveAttention"], {"ops": []}, {"graphs": {}}])
def test_settings_in_another_form_are_refused(jetson, unmeasured, plugins):
    with pytest.raises(BundleError, match=r"trt-fp32: plugins: expected ops and the file .* optimize --force"):
        jetson.open(with_plugins(unmeasured, plugins))


def test_bundle_without_variants_has_no_plugins(jetson, unmeasured):
    assert plugins_of(unmeasured.manifest.targets["trt-fp32"]) == (("AdditiveAttention",), {"step": VARIANT})
    assert plugins_of(with_plugins(unmeasured, []).manifest.targets["trt-fp32"]) == ((), {})
    assert plugins_of(jetson.ready(unmeasured.path).manifest.targets["trt-fp32"]) == ((), {})


def test_optimize_build_stores_measurement(jetson, copied, capsys):
    pytest.importorskip("onnx", reason="torch is not installed: a device needs none")
    optimize = importlib.import_module("edge_attn.runtimes.optimize.optimize").optimize
    profiles = copied.with_name("profiles.toml")
    profiles.write_text("[buckets]\nbatch = [32]\nsrc = [8]\n")
    lines: list[str] = []
    options = {"profiles": profiles, "build": True, "cache_dir": jetson.cache, "log": lines.append}
    assert optimize(copied, "trt", "fp32", plugins=("AdditiveAttention",), **options) == 0, lines
    reason = "tensorrt 10.3.0 takes no ahead-of-time plugin, TensorRT 10.13 and newer do"
    assert f"toy.zip: trt-fp32 runs {WITHOUT}: {reason}" in lines
    assert f"; {WITHOUT}; buffers of" in lines[-1]
    target = Bundle.open(copied).manifest.targets["trt-fp32"]
    assert plugins_of(target) == (("AdditiveAttention",), {"step": VARIANT})
    choice = target.settings["plugins"]["measured"]["graphs"]["step"]
    assert choice == {"plugin": False, "reason": reason, "timings": []}


def test_every_graph_takes_the_example_inputs(opened):
    for spec in opened.manifest.graphs.values():
        for tensor in spec.inputs:
            values = _example_input(tensor, tuple(2 for _ in tensor.shape))
            assert values.dtype == tensor.dtype
            assert np.isfinite(values.astype(float)).all()
            assert values.all() == (tensor.dtype not in ("int64", "int32"))
