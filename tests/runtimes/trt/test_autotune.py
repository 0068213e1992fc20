"""Of two engines of one graph the quicker one runs, and is remembered; on the fake (conftest.py)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import choices
import fake_trt
import numpy as np
import pytest
from choices import BUCKETS, QUICK, SLOW, STEP, VARIANT, WITH, WITHOUT, runs, with_plugins

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import BundleError
from edge_attn.parity import golden
from edge_attn.runtimes.commands.cache import clear_cache
from edge_attn.runtimes.trt import autotune as trt_choice
from edge_attn.runtimes.trt.autotune import TURNS, WARM, plugins_of
from edge_attn.runtimes.verification.verify import check

both, registered = choices.both, choices.registered


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

    monkeypatch.setattr(trt_choice, "write_bytes", refuse)
    assert runs(jetson, both, sources) == runs(jetson, both, sources) == WITH


# ---- an engine that TensorRT refuses


@pytest.fixture
def refusing(monkeypatch) -> list[float]:
    """What TensorRT refuses from now on: engines by the seconds of their runs, the first once, and so on."""
    left: list[float] = []
    load = fake_trt.Runtime.deserialize_cuda_engine

    def refuse(runtime, plan):
        if left and fake_trt.header(plan)[3] == left[0]:
            left.pop(0)
            runtime._log.log(fake_trt.ILogger.ERROR, "the driver is too old for its PTX")
            return None
        return load(runtime, plan)

    monkeypatch.setattr(fake_trt.Runtime, "deserialize_cuda_engine", refuse)
    return left


REFUSED = "tensorrt 10.13.2 does not load the engine of step"


def test_a_chosen_engine_that_is_refused_is_built_and_measured_again(jetson, both, sources, capsys, refusing):
    assert runs(jetson, both, sources) == WITH
    capsys.readouterr()
    refusing.append(QUICK)
    assert runs(jetson, both, sources) == WITH
    assert refusing == []
    building, said = capsys.readouterr().err.splitlines()
    assert f"building the engine ({REFUSED}: the driver is too old" in building
    assert f"runs {WITH.removeprefix('step ')}: one run takes " in said
    assert jetson.built[3:] == [VARIANT]
    assert runs(jetson, both, sources) == WITH
    assert capsys.readouterr().err == ""


def test_a_chosen_engine_that_is_refused_twice_gives_way(jetson, both, sources, capsys, refusing):
    assert runs(jetson, both, sources) == WITH
    refusing += [QUICK, QUICK]
    assert runs(jetson, both, sources) == WITHOUT
    assert refusing == []
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"runs without the plugin AdditiveAttention: {REFUSED} with AdditiveAttention: the driver" in said
    assert runs(jetson, both, sources) == WITHOUT
    assert capsys.readouterr().err == ""
    assert jetson.built[3:] == [VARIANT]


@pytest.mark.parametrize("refused", [[QUICK], [SLOW], [SLOW, QUICK]])
def test_what_is_refused_when_it_is_to_be_timed_is_built_again(jetson, both, sources, capsys, refusing, refused):
    assert runs(jetson, both, sources) == WITH
    damage(jetson.cache)
    refusing += refused
    assert runs(jetson, both, sources) == WITH
    assert refusing == []
    assert sorted(jetson.built[3:]) == sorted({QUICK: VARIANT, SLOW: STEP}[seconds] for seconds in refused)
    capsys.readouterr()
    assert runs(jetson, both, sources) == WITH
    assert capsys.readouterr().err == ""


# ---- what a bundle says


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
    optimize = importlib.import_module("edge_attn.runtimes.optimize.optimize").optimize
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
