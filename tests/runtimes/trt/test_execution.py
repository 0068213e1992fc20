"""Engines, contexts and CUDA graphs of the runtime `trt`, on the fake TensorRT of conftest.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import fake_trt
import pytest
from fake_cuda import Fault

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.beam_search import search
from edge_attn.decoding.decoder import StepDecoder
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import BundleError, NotTestedError
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.trt import execution as execution
from edge_attn.runtimes.trt.runtime import Trt, TrtRtx


def test_similar_requests_share_launches(jetson, runtime, sources):
    """Sources of all lengths and batches of all sizes in one bucket share their CUDA graphs."""
    config = SearchConfig(beam=4, max_length=20)
    short = [source for source in sources if len(source) <= 6]
    for count in (2, 3, 5, 8):
        search(runtime, short[:count], config)
    keys = [launch.key for launch in runtime._launches._launches.values()]
    assert sorted(key.graph for key in keys) == ["encoder", "step", "step", "step", "step"]
    assert {key.shapes[0] for key in keys} == {(8, 6), (8, 1), (8, 4)}


@pytest.mark.parametrize("name", ["cudaGraphLaunch", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_late_cuda_error_is_reported_and_everything_is_freed(jetson, bundle, sources, name):
    runtime = jetson.open(bundle)
    config = SearchConfig(beam=2, max_length=12)
    search(runtime, sources[:3], config)
    jetson.cuda.fail(name, 700)
    with pytest.raises(NotTestedError, match=f"CUDA failed in {name}: cudaError700: injected"):
        search(runtime, sources[:3], config)
    jetson.cuda.failing.clear()
    runtime.close()
    assert jetson.cuda.leaks() == []


@pytest.mark.parametrize("name", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"])
def test_uncapturable_graphs_are_enqueued(jetson, runtime, bundle, sources, name):
    jetson.cuda.fail(name, 900)
    config = SearchConfig(beam=4, max_length=20)
    results = search(runtime, sources[:9], config)
    assert [h[0].tokens for h in results] == [
        h[0].tokens for h in search(OrtCpu(bundle, RuntimeOptions(threads=1)), sources[:9], config)
    ]
    assert jetson.cuda.calls["cudaGraphLaunch"] == 0
    assert "CUDA graphs" not in runtime.provider
    assert "not capturable: step" in runtime.provider
    assert jetson.cuda.calls[name] <= 2  # one attempt per graph


def test_interruption_ends_the_capture(monkeypatch, runtime, sources):
    """Otherwise the stream stays in capture mode, and the next call fails."""
    search(runtime, sources[:1], SearchConfig(beam=1))

    def interrupt(context: Any, stream: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fake_trt.IExecutionContext, "execute_async_v3", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search(runtime, sources[:1], SearchConfig(beam=1))
    results = search(runtime, sources[:1], SearchConfig(beam=1))
    assert results[0][0].tokens


def test_unloadable_new_engine_is_an_error(jetson, bundle):
    jetson.change = lambda plan: b"JUNK" + plan
    with pytest.raises(NotTestedError, match=r"10.3.0 does not load the engine of encoder: Magic tag does"):
        jetson.open(bundle)
    assert len(jetson.built) == 2  # a new engine is not built again


def test_unloadable_cached_engine_is_built_again(jetson, bundle, capsys):
    jetson.change = lambda plan: b"JUNK" + plan
    with pytest.raises(NotTestedError):
        jetson.open(bundle)
    capsys.readouterr()
    jetson.change = bytes
    jetson.open(bundle).close()
    lines = capsys.readouterr().err.splitlines()
    for line, graph in zip(lines, ("encoder", "step"), strict=True):
        assert (
            f"{graph} for trt-fp32: building the engine (tensorrt 10.3.0 does not load the engine of {graph}:" in line
        )
        assert "Magic tag does not match" in line
    assert len(jetson.built) == 4
    jetson.open(bundle).close()
    assert len(jetson.built) == 4


def test_cached_engine_stays_after_out_of_memory(monkeypatch, jetson, bundle):
    jetson.open(bundle).close()

    def run_out_of_memory(runtime: Any, plan: bytes) -> None:
        runtime._log.log(fake_trt.ILogger.ERROR, "Requested amount of GPU memory could not be allocated: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(fake_trt.Runtime, "deserialize_cuda_engine", run_out_of_memory)
        with pytest.raises(NotTestedError, match=r"does not load the engine of encoder.*close other programs"):
            jetson.open(bundle)
    jetson.open(bundle).close()
    assert len(jetson.built) == 2


def test_number_of_launches_is_limited(monkeypatch, jetson, runtime, bundle, sources):
    """Results stay equal to those of the CPU while old contexts and CUDA graphs are destroyed."""
    monkeypatch.setattr(execution, "MAX_LAUNCHES", 3)
    cpu = OrtCpu(bundle, RuntimeOptions(threads=1))
    for beam in (1, 2, 3, 4, 5, 1):
        config = SearchConfig(beam=beam, n_best=1)
        actual, expected = (search(r, sources[:2], config) for r in (runtime, cpu))
        assert [h[0].tokens for h in actual] == [h[0].tokens for h in expected]
        assert len(runtime._launches._launches) <= 3
    assert jetson.cuda.calls["cudaGraphExecDestroy"] > 3


def test_tensorrt_that_does_not_start_is_an_error(monkeypatch, jetson, bundle):
    def refuse(cuda: Any, log: Any) -> None:
        log.log(fake_trt.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(fake_trt, "Runtime", refuse)
    with pytest.raises(NotTestedError, match=r"tensorrt 10.3.0 does not start: CUDA initialization failure"):
        jetson.open(bundle)


def test_out_of_memory_for_a_context_names_the_remedy(monkeypatch, jetson, runtime, sources):
    def refuse(engine: Any, strategy: Any) -> None:
        engine.log.log(fake_trt.ILogger.ERROR, "[virtualMemoryBuffer] OutOfMemory (no further\n information)")

    monkeypatch.setattr(fake_trt.ICudaEngine, "create_execution_context", refuse)
    with pytest.raises(NotTestedError) as caught:
        StepDecoder(runtime, sources[:1])
    assert str(caught.value).startswith(
        "tensorrt 10.3.0 creates no execution context for encoder: [virtualMemoryBuffer] OutOfMemory (no further "
        "information) ("
    )
    assert str(caught.value).endswith("are free; close other programs that use it, or choose smaller buckets)")


def test_candidates_are_copied_by_the_launch(jetson, runtime, sources):
    """From its third run on, a step is one launch and one synchronization that includes the candidates."""
    config = SearchConfig(beam=2, n_best=1)
    for _ in range(3):
        search(runtime, sources[:2], config)
    jetson.cuda.calls.clear()
    results = search(runtime, sources[:2], config)
    steps = jetson.cuda.calls["cudaGraphLaunch"]
    assert steps >= max(len(hypotheses[0].tokens) for hypotheses in results)
    assert jetson.cuda.calls["cudaStreamSynchronize"] <= steps + 2  # two of the encoder
    assert jetson.cuda.calls["cudaMemcpyAsync"] <= 2  # of the encoder, whose loop cannot be captured


def test_rtx_kernels_are_compiled_once(jetson, bundle, sources):
    """The next process reads them from a file. An invalid file is ignored."""
    config = SearchConfig(beam=2, n_best=1)
    expected = [h[0].tokens for h in search(OrtCpu(bundle, RuntimeOptions(threads=1)), sources[:2], config)]

    def decode() -> int:
        jetson.cuda.calls.clear()
        runtime = TrtRtx(bundle, RuntimeOptions(cache_dir=jetson.cache))
        assert [h[0].tokens for h in search(runtime, sources[:2], config)] == expected
        runtime.close()
        return jetson.cuda.calls[fake_trt.COMPILES]

    assert [decode(), decode()] == [1, 0]
    (kernels,) = jetson.cache.rglob("*.kernels")
    kernels.write_bytes(b"of another version")
    assert [decode(), decode()] == [1, 0]


def test_unwritable_kernel_file_is_no_error(jetson, bundle, sources):
    runtime = TrtRtx(bundle, RuntimeOptions(cache_dir=jetson.cache))
    runtime._launches.contexts.kernels = jetson.cache / "none" / "of.kernels"
    search(runtime, sources[:2], SearchConfig())
    runtime.close()


def test_rtx_capture_checks_is_stream_capturable(jetson, bundle, sources):
    runtime = TrtRtx(bundle, RuntimeOptions(cache_dir=jetson.cache))
    for _ in range(3):
        search(runtime, sources[:2], SearchConfig(beam=1))
    assert "as CUDA graphs: step; not capturable: encoder" in runtime.provider
    assert "cannot capture encoder: the graph has a loop" in runtime._launches.enqueued["encoder"]
    runtime.close()


def test_engine_of_another_graph_is_rejected(jetson, bundle):
    step = bundle.manifest.graphs["step"]
    jetson.change = lambda plan: fake_trt.build(bundle.read(step.file), fake_trt.header(plan)[0])
    with pytest.raises(NotTestedError, match=r"engine of encoder is not this bundle's: its .* differs; run: edge"):
        jetson.open(bundle)


def test_engine_with_other_profiles_is_rejected(jetson, bundle):
    jetson.change = lambda plan: fake_trt.build(fake_trt.model(plan), fake_trt.header(plan)[0][:2])
    with pytest.raises(NotTestedError, match="not this bundle's: it has 2 profiles; run: edge-attn cache clear"):
        jetson.open(bundle)


def test_too_narrow_profile_names_tensorrts_reason(jetson, bundle, sources):
    def narrow(plan: bytes) -> bytes:
        profiles = [{name: 3 * [len(s[0]) * [1]] for name, s in one.items()} for one in fake_trt.header(plan)[0]]
        return fake_trt.build(fake_trt.model(plan), profiles)

    jetson.change = narrow
    runtime = jetson.open(bundle)
    with pytest.raises(NotTestedError, match=r"rejects source of shape \(8, 6\): .* does not satisfy profile 1"):
        StepDecoder(runtime, [[5, 3]] * 8)
    runtime.close()


@pytest.mark.parametrize(
    ("method", "problem"),
    [("set_optimization_profile_async", "rejects profile 0 of"), ("infer_shapes", "cannot infer the shapes of")],
)
def test_exception_of_the_bindings_is_reported(monkeypatch, jetson, runtime, method, problem):
    def fail(self: object, *arguments: object) -> bool:
        raise RuntimeError("Error in it")

    monkeypatch.setattr(fake_trt.IExecutionContext, method, fail)
    with pytest.raises(NotTestedError, match=problem):
        StepDecoder(runtime, [[5, 3]])


def test_output_shape_differs_from_the_manifest(jetson, bundle, sources):
    graphs = dict(bundle.manifest.graphs)
    outputs = [
        dataclasses.replace(tensor, shape=("batch", "src", 9)) if tensor.name == "memory.keys" else tensor
        for tensor in graphs["encoder"].outputs
    ]
    graphs["encoder"] = dataclasses.replace(graphs["encoder"], outputs=tuple(outputs))
    target = dataclasses.replace(bundle.manifest.targets["trt-fp32"], graphs=graphs)
    changed = Bundle(bundle.path, dataclasses.replace(bundle.manifest, targets={target.name: target}), bundle.files())
    runtime = jetson.open(changed)
    with pytest.raises(BundleError, match=r"encoder returns memory.keys of shape \(1, 6, 8\), expected \(1, 6, 9\)"):
        StepDecoder(runtime, [[5, 3]])
    runtime.close()


PLANTED: list[tuple[str, Callable[[Trt], None], str]] = [
    (
        "a state is overwritten while it is read",
        lambda runtime: setattr(runtime, "_output_buffer", lambda tensor, in_use: runtime._buffers[tensor.name][0]),
        "use the same memory",
    ),
    (
        "two outputs share a buffer",
        lambda runtime: setattr(runtime, "_output_buffer", lambda tensor, in_use: runtime._buffers["memory.values"][0]),
        "use the same memory",
    ),
    (
        "a buffer is too small",
        lambda runtime: runtime._buffers.update(log_probs=runtime._buffers["source_length"]),
        "bytes past its buffer",
    ),
    (
        "a buffer is freed too early",
        lambda runtime: runtime._memory._cuda.free(runtime._buffers["memory.mask"][0].address),
        "use after free",
    ),
    (
        "there is no scratch memory",
        lambda runtime: setattr(runtime._launches, "_scratch", (0, 0)),
        "bytes of scratch memory",
    ),
]


@pytest.mark.parametrize(("plant", "fault"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_planted_memory_fault_is_detected(jetson, bundle, sources, plant, fault):
    runtime = jetson.open(bundle)
    buffers = runtime._buffers.copy()
    plant(runtime)
    with pytest.raises(Fault, match=fault):
        search(runtime, sources[:3], SearchConfig(beam=2, max_length=6))
    runtime._buffers.update(buffers)
    jetson.cuda.revive()
    runtime.close()
