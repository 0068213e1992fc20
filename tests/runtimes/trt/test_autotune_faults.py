"""Where the plugin cannot be had the inlined graph runs, and only what is the plugin's own fault is remembered; on the
fake (conftest.py)."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable

import choices
import fake_trt
import pytest
from choices import PLUGINS, STEP, VARIANT, WITH, WITHOUT, raising, runs, tokens, with_plugins

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import InputError, NotTestedError
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.trt import autotune as trt_choice
from edge_attn.runtimes.trt import engine_cache
from edge_attn.runtimes.trt.builder import TookTooLongError
from edge_attn.runtimes.trt.cudart import FUNCTIONS
from edge_attn.runtimes.trt.engine_cache import EngineCache
from edge_attn.runtimes.trt.execution import Launches
from edge_attn.runtimes.trt.plugins import additive_attention
from edge_attn.runtimes.trt.runtime import TrtRtx

both, built_as, registered = choices.both, choices.built_as, choices.registered


def no_compiler(tensorrt, architecture):
    raise NotTestedError("a plugin needs a CUDA compiler, and there is none")


def broken(tensorrt, architecture):
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


def smaller(plan: bytes) -> bytes:
    """Profiles that take no request."""
    profiles = [{name: 3 * [len(s[0]) * [1]] for name, s in one.items()} for one in fake_trt.header(plan)[0]]
    return fake_trt.build(fake_trt.model(plan), profiles)


TOO_LONG = TookTooLongError("step.plugins.onnx: the build took longer than 60 minutes and was ended")
FAILS = {
    "its build fails": (raising(InputError("step.plugins.onnx cannot be built: no such plugin")), "no such plugin"),
    "its build takes too long": (raising(TOO_LONG), "--build --max-build-minutes 120; or build for fewer buckets"),
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
    built_as(raising(TOO_LONG))
    assert runs(jetson, both, sources) == WITHOUT
    built_as(bytes)
    target = both.manifest.targets["trt-fp32"]
    settings = {**target.settings, "build": {**target.settings["build"], "max_build_minutes": 120.0}}
    targets = {target.name: dataclasses.replace(target, settings=settings)}
    again = Bundle(both.path, dataclasses.replace(both.manifest, targets=targets), both._files)
    assert runs(jetson, both, sources) == WITHOUT
    assert runs(jetson, again, sources) == WITH


def test_what_failed_is_tried_again_with_another_variant(jetson, both, sources, built_as):
    built_as(raising(InputError("step.plugins.onnx cannot be built: no such plugin")))
    assert runs(jetson, both, sources) == WITHOUT
    built_as(bytes)
    name = b"step of a newer version"  # of the graph: field 2 of GraphProto, field 7 of ModelProto; the last one counts
    graph = bytes([2 << 3 | 2, len(name)]) + name
    files = {**both._files, VARIANT: both.read(VARIANT) + bytes([7 << 3 | 2, len(graph)]) + graph}
    assert runs(jetson, Bundle(both.path, both.manifest, files), sources) == WITH


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_room_for_it(jetson, patch) -> None:
    check = EngineCache._check_space
    patch.setattr(EngineCache, "_check_space", lambda *given: (full if STEP in jetson.built else check)(*given))


def disk_full(jetson, patch) -> None:
    write = engine_cache.write_bytes
    patch.setattr(engine_cache, "write_bytes", lambda *given: (full if VARIANT in jetson.built else write)(*given))


def while_timed(error: Exception) -> Callable[..., None]:
    def race(*_: object) -> None:
        raise error

    return lambda jetson, patch: patch.setattr(trt_choice, "race", race)


LOW_MEMORY = {
    "no room for its engine": no_room_for_it,
    "a disk full while it is written": disk_full,
    "the device's memory": while_timed(NotTestedError("the GPU has too little memory: mask needs 9.0 MiB")),
    "TensorRT's memory": while_timed(NotTestedError("tensorrt 10.13.2 does not run step: Out of Memory")),
    "the host's memory": while_timed(MemoryError()),
}


@pytest.mark.parametrize("what", LOW_MEMORY)
def test_what_is_no_doing_of_the_plugin_is_not_remembered(jetson, both, sources, monkeypatch, what):
    with monkeypatch.context() as patch:
        LOW_MEMORY[what](jetson, patch)
        assert runs(jetson, both, sources) == WITHOUT
    assert runs(jetson, both, sources) == WITH


ILLEGAL = "CUDA failed in cudaStreamSynchronize: cudaErrorIllegalAddress: an illegal memory access was encountered"
ASTRAY = {
    "while it is timed": ("race", NotTestedError(ILLEGAL)),
    "while it is built": ("build", InputError(f"step.plugins.onnx cannot be built with tensorrt 10.13.2: {ILLEGAL}")),
    "and memory is said to be scarce": ("build", NotTestedError("step.plugins.onnx: memory ran out")),
}


@pytest.mark.parametrize("when", ASTRAY)
def test_a_kernel_that_goes_astray_ends_one_run_and_no_other(
    jetson, both, sources, monkeypatch, capsys, built_as, when
):
    where, error = ASTRAY[when]

    def astray(*_: object) -> bytes:
        for name in FUNCTIONS:  # whatever is asked of CUDA from now on
            jetson.cuda.fail(name, 700)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(trt_choice, "race", astray if where == "race" else trt_choice.race)
        built_as(astray if where == "build" else bytes)
        with pytest.raises(NotTestedError) as raised:
            jetson.open(both)
    assert str(raised.value) == (
        "step with AdditiveAttention: the plugin's fault ended CUDA in this process; run the command again, it is not "
        "tried again"
    )
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"{both.path.name}: step for trt-fp32 runs without the plugin AdditiveAttention: {error}"
    jetson.cuda.failing.clear()
    jetson.cuda.forget()
    assert runs(jetson, both, sources) == WITHOUT
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [NotTestedError("it stopped on the way"), KeyboardInterrupt()])
def test_what_stops_a_run_on_its_way_is_said(jetson, both, monkeypatch, capsys, error):
    run, started = Launches.run, []

    def stop(launches, bound) -> None:
        run(launches, bound)
        started.append(bound)
        if len(started) == 5:
            raise error

    monkeypatch.setattr(Launches, "run", stop)
    with pytest.raises(KeyboardInterrupt) if isinstance(error, KeyboardInterrupt) else contextlib.nullcontext():
        jetson.open(both).close()
    said = capsys.readouterr().err.splitlines()[-1]
    assert isinstance(error, KeyboardInterrupt) or said.endswith(f"{WITHOUT.removeprefix('step ')}: {error}")


def test_a_build_that_is_interrupted_is_interrupted(jetson, both, built_as):
    def interrupt(plan: bytes) -> bytes:
        raise KeyboardInterrupt

    built_as(interrupt)
    with pytest.raises(KeyboardInterrupt):
        jetson.open(both)
