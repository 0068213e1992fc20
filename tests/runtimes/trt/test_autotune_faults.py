"""A plugin that fails gives way to the inlined graph, while measuring and while running; on the fake of conftest.py."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import os

import choices
import fake_trt
import pytest
from choices import PLUGINS, STEP, VARIANT, WITH, WITHOUT, measure, raising, running_step, tokens, with_plugins

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import InputError, NotTestedError, UsageError
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.trt.builder import BuildTimeoutError
from edge_attn.runtimes.trt.cudart import FUNCTIONS
from edge_attn.runtimes.trt.engine_cache import EngineCache
from edge_attn.runtimes.trt.execution import Launches
from edge_attn.runtimes.trt.plugins import additive_attention
from edge_attn.runtimes.trt.runtime import TrtRtx

change_variant, registered, unmeasured = choices.change_variant, choices.registered, choices.unmeasured


def choice_of(bundle: Bundle) -> dict[str, object]:
    return bundle.manifest.targets["trt-fp32"].settings["plugins"]["measured"]["graphs"]["step"]


def no_compiler(tensorrt, architecture):
    raise NotTestedError("a plugin needs a CUDA compiler, and there is none")


def broken(tensorrt, architecture):
    raise ValueError("TensorRT changed its mind")


def narrow_profiles(engine: bytes) -> bytes:
    """Replace the profiles by ones that take no request."""
    profiles = [{name: 3 * [len(s[0]) * [1]] for name, s in one.items()} for one in fake_trt.header(engine)[0]]
    return fake_trt.build(fake_trt.model(engine), profiles)


TOO_LONG = BuildTimeoutError("step.plugins.onnx: the build took longer than 60 minutes and was stopped")
FAULTS = {
    "TensorRT 10.3": ((10, 3, 0), "tensorrt 10.3.0 takes no ahead-of-time plugin, TensorRT 10.13 and newer do"),
    "no compiler": (no_compiler, "a plugin needs a CUDA compiler, and there is none"),
    "plugin interface": (broken, "ValueError: TensorRT changed its mind"),
    "missing file": ("elsewhere.onnx", "elsewhere.onnx is missing"),
    "build fails": (raising(InputError("step.plugins.onnx cannot be built: no such plugin")), "no such plugin"),
    "build takes too long": (raising(TOO_LONG), "--build --max-build-minutes 120; or build for fewer buckets"),
    "build lacks memory": (raising(NotTestedError("step: memory ran out")), "step: memory ran out"),
    "engine does not load": (lambda engine: b"JUNK" + engine, "Magic tag does not match"),
    "engine of another graph": (lambda engine: engine.replace(b"log_probs", b"log_prods"), "is not this bundle's"),
    "engine does not run": (narrow_profiles, "does not satisfy profile 0"),
}
"""Planted fault (a version, a register function, a file, or a change of the engine) and the reason that is stored."""


def plant(jetson, bundle: Bundle, patch, change_variant, fault: object) -> Bundle:
    if isinstance(fault, tuple):
        jetson.version = fault
    elif isinstance(fault, str):
        return with_plugins(bundle, {**PLUGINS, "graphs": {"step": fault}})
    elif fault in (no_compiler, broken):
        plugin = dataclasses.replace(additive_attention.PLUGIN, register=fault)
        patch.setattr(additive_attention, "PLUGIN", plugin)
    else:
        change_variant(fault)
    return bundle


@pytest.mark.parametrize("what", FAULTS)
def test_fault_while_measuring_is_the_stored_reason(
    jetson, unmeasured, sources, monkeypatch, capsys, change_variant, what
):
    fault, reason = FAULTS[what]
    bundle = measure(jetson, plant(jetson, unmeasured, monkeypatch, change_variant, fault))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"{bundle.path.name}: trt-fp32 runs {WITHOUT}: ")
    assert reason in line
    assert choice_of(bundle)["plugin"] is False
    assert reason in choice_of(bundle)["reason"]
    built = len(jetson.built)
    assert running_step(jetson, bundle, sources) == WITHOUT
    assert len(jetson.built) - built == 1, "the encoder"


@pytest.mark.parametrize("what", ["no compiler", "plugin interface", "missing file", "build fails"])
def test_fault_while_running_falls_back_to_inlined_graph(
    jetson, unmeasured, sources, monkeypatch, capsys, change_variant, what
):
    bundle = measure(jetson, unmeasured)
    jetson.cache = jetson.cache / "another"  # so that the engine must be built again
    measured = bundle.manifest.targets["trt-fp32"].settings["plugins"]["measured"]
    fault, reason = FAULTS[what]
    with monkeypatch.context() as patch:
        planted = plant(jetson, bundle, patch, change_variant, fault)
        graphs = planted.manifest.targets["trt-fp32"].settings["plugins"]["graphs"]
        planted = with_plugins(planted, {**PLUGINS, "graphs": graphs, "measured": measured})
        capsys.readouterr()
        assert running_step(jetson, planted, sources) == WITHOUT
        [line] = [line for line in capsys.readouterr().err.splitlines() if " runs " in line]
        assert line.startswith(f"{bundle.path.name}: trt-fp32 runs {WITHOUT}: ")
        assert reason in line
    change_variant(bytes)
    assert running_step(jetson, bundle, sources) == WITH


def test_inlined_graph_runs_on_tensorrt_rtx(jetson, unmeasured, sources, capsys):
    bundle = measure(jetson, unmeasured)
    jetson.built.clear()
    runtime = TrtRtx(bundle, RuntimeOptions(cache_dir=jetson.cache))
    assert tokens(runtime, sources) == tokens(OrtCpu(bundle, RuntimeOptions(threads=1)), sources)
    runtime.close()
    assert f"runs {WITHOUT}: tensorrt-rtx 1.7.1 takes no ahead-of-time plugin" in capsys.readouterr().err
    assert VARIANT not in jetson.built


def test_unknown_plugin_is_refused_where_it_is_measured(jetson, unmeasured, sources, capsys):
    bundle = with_plugins(unmeasured, {**PLUGINS, "ops": ["Gru"], "measured": {"graphs": {"step": {"plugin": True}}}})
    reason = "there is no plugin 'Gru' for the target 'trt'; known: AdditiveAttention"
    with pytest.raises(UsageError, match=reason):
        measure(jetson, bundle)
    jetson.open(bundle).close()
    assert f"runs step without the plugin Gru: {reason}" in capsys.readouterr().err


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_is_full(jetson, patch) -> None:
    check = EngineCache._check_space
    patch.setattr(EngineCache, "_check_space", lambda *arguments: (full if STEP in jetson.built else check)(*arguments))


def disk_fills_up(jetson, patch) -> None:
    write = EngineCache._write
    patch.setattr(EngineCache, "_write", lambda *arguments: (full if VARIANT in jetson.built else write)(*arguments))


@pytest.mark.parametrize("plant_fault", [disk_is_full, disk_fills_up])
def test_full_disk_while_measuring_is_the_stored_reason(jetson, unmeasured, sources, monkeypatch, plant_fault):
    with monkeypatch.context() as patch:
        plant_fault(jetson, patch)
        bundle = measure(jetson, unmeasured)
    assert "free some space" in choice_of(bundle)["reason"]
    assert running_step(jetson, bundle, sources) == WITHOUT
    assert running_step(jetson, measure(jetson, unmeasured), sources) == WITH


ILLEGAL = "CUDA failed in cudaStreamSynchronize: cudaErrorIllegalAddress: an illegal memory access was encountered"


def test_kernel_fault_ends_the_measuring_run_only(jetson, copied, registered, change_variant):
    pytest.importorskip("onnx", reason="torch is not installed: a device needs none")
    optimize = importlib.import_module("edge_attn.runtimes.optimize.optimize").optimize
    profiles = copied.with_name("profiles.toml")
    profiles.write_text("[buckets]\nbatch = [32]\nsrc = [8]\n")
    jetson.version = (10, 13, 2)
    options = {"profiles": profiles, "cache_dir": jetson.cache, "log": lambda line: None}

    def illegal_access(*_: object) -> None:
        for name in FUNCTIONS:  # every later call of CUDA in this process fails too
            jetson.cuda.fail(name, 700)
        raise NotTestedError(ILLEGAL)

    optimize(copied, "trt", "fp32", plugins=("AdditiveAttention",), **options)
    change_variant(illegal_access)
    with pytest.raises(
        NotTestedError, match=r"trt-fp32 is written, but it was not built or run here: .*; afterwards: "
    ):
        optimize(copied, "trt", "fp32", build=True, **options)
    choice = choice_of(Bundle.open(copied))
    assert (choice["plugin"], choice["reason"]) == (False, ILLEGAL)
    jetson.cuda.failing.clear()
    jetson.cuda.forget()
    runtime = jetson.open(Bundle.open(copied))
    assert f"; {WITHOUT}; buffers of" in runtime.provider
    runtime.close()


@pytest.mark.parametrize("error", [NotTestedError("it stopped on the way"), KeyboardInterrupt()])
def test_interruption_while_measuring_frees_all_memory(jetson, unmeasured, monkeypatch, error):
    run, started = Launches.run, []

    def stop(launches, key) -> None:
        run(launches, key)
        started.append(key)
        if len(started) == 5:
            raise error

    monkeypatch.setattr(Launches, "run", stop)
    interrupted = isinstance(error, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt) if interrupted else contextlib.nullcontext():
        assert choice_of(measure(jetson, unmeasured))["reason"] == "it stopped on the way"


def test_interrupted_build_is_interrupted(jetson, unmeasured, change_variant):
    change_variant(raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        measure(jetson, unmeasured)
