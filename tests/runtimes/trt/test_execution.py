"""Engines, contexts and CUDA graphs of the runtime `trt`; on the fake (conftest.py)."""

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
from edge_attn.runtimes.trt import execution as trt_launch
from edge_attn.runtimes.trt.runtime import Trt, TrtRtx


def test_shapes_are_those_of_a_few_launches(jetson, runtime, sources):
    """Sentences of any length and batches of any size in one bucket share their CUDA graphs."""
    config = SearchConfig(beam=4, max_length=20)
    short = [source for source in sources if len(source) <= 6]
    for count in (2, 3, 5, 8):
        search(runtime, short[:count], config)
    launches = [launch.bound for launch in runtime._launches._launches.values()]
    assert sorted(bound.graph for bound in launches) == ["encoder", "step", "step", "step", "step"]
    assert {bound.shapes[0] for bound in launches} == {(8, 6), (8, 1), (8, 4)}


@pytest.mark.parametrize("name", ["cudaGraphLaunch", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_what_fails_later_is_said_and_all_is_freed(jetson, bundle, sources, name):
    runtime = jetson.open(bundle)
    config = SearchConfig(beam=2, max_length=12)
    search(runtime, sources[:3], config)
    jetson.cuda.fail(name, 700)
    with pytest.raises(NotTestedError, match=f"CUDA failed in {name}: cudaError700: planted"):
        search(runtime, sources[:3], config)
    jetson.cuda.failing.clear()
    runtime.close()
    assert jetson.cuda.leaks() == []


@pytest.mark.parametrize("name", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"])
def test_where_nothing_can_be_captured_everything_is_enqueued(jetson, runtime, bundle, sources, name):
    jetson.cuda.fail(name, 900)
    config = SearchConfig(beam=4, max_length=20)
    found = search(runtime, sources[:9], config)
    assert [h[0].tokens for h in found] == [
        h[0].tokens for h in search(OrtCpu(bundle, RuntimeOptions(threads=1)), sources[:9], config)
    ]
    assert jetson.cuda.calls["cudaGraphLaunch"] == 0
    assert "CUDA graphs" not in runtime.provider
    assert "not capturable: step" in runtime.provider
    assert jetson.cuda.calls[name] <= 2  # it is tried once a graph


def test_an_interrupted_capture_is_over(monkeypatch, runtime, sources):
    """Else the stream would go on recording, and that would be said in the interruption's place."""
    search(runtime, sources[:1], SearchConfig(beam=1))

    def interrupt(context: Any, stream: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fake_trt.IExecutionContext, "execute_async_v3", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search(runtime, sources[:1], SearchConfig(beam=1))
    found = search(runtime, sources[:1], SearchConfig(beam=1))
    assert found[0][0].tokens


def test_an_engine_that_does_not_load(jetson, bundle):
    jetson.change = lambda plan: b"JUNK" + plan
    with pytest.raises(NotTestedError, match=r"10.3.0 does not load the engine of encoder: Magic tag does"):
        jetson.open(bundle)
    assert len(jetson.built) == 2  # what was built just now is not built again


def test_an_engine_of_the_cache_that_does_not_load_is_built_again_with_the_reason(jetson, bundle, capsys):
    jetson.change = lambda plan: b"JUNK" + plan
    with pytest.raises(NotTestedError):
        jetson.open(bundle)
    capsys.readouterr()
    jetson.change = bytes
    jetson.open(bundle).close()
    said = capsys.readouterr().err.splitlines()
    for line, graph in zip(said, ("encoder", "step"), strict=True):
        assert (
            f"{graph} for trt-fp32: building the engine (tensorrt 10.3.0 does not load the engine of {graph}:" in line
        )
        assert "Magic tag does not match" in line
    assert len(jetson.built) == 4
    jetson.open(bundle).close()
    assert len(jetson.built) == 4


def test_an_engine_that_finds_no_memory_to_load_is_kept(monkeypatch, jetson, bundle):
    jetson.open(bundle).close()

    def forgets(runtime: Any, plan: bytes) -> None:
        runtime._log.log(fake_trt.ILogger.ERROR, "Requested amount of GPU memory could not be allocated: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(fake_trt.Runtime, "deserialize_cuda_engine", forgets)
        with pytest.raises(NotTestedError, match=r"does not load the engine of encoder.*close other programs"):
            jetson.open(bundle)
    jetson.open(bundle).close()
    assert len(jetson.built) == 2


def test_launches_are_not_kept_for_ever(monkeypatch, jetson, runtime, bundle, sources):
    """Many shapes in turn: the tokens stay those of the CPU, and no more contexts and graphs live than are kept."""
    monkeypatch.setattr(trt_launch, "KEPT", 3)
    cpu = OrtCpu(bundle, RuntimeOptions(threads=1))
    for beam in (1, 2, 3, 4, 5, 1):
        config = SearchConfig(beam=beam, n_best=1)
        found, expected = (search(r, sources[:2], config) for r in (runtime, cpu))
        assert [h[0].tokens for h in found] == [h[0].tokens for h in expected]
        assert len(runtime._launches._launches) <= 3
    assert jetson.cuda.calls["cudaGraphExecDestroy"] > 3


def test_tensorrt_that_does_not_start(monkeypatch, jetson, bundle):
    def refuse(cuda: Any, log: Any) -> None:
        log.log(fake_trt.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(fake_trt, "Runtime", refuse)
    with pytest.raises(NotTestedError, match=r"tensorrt 10.3.0 does not start: CUDA initialization failure"):
        jetson.open(bundle)


def test_too_little_memory_for_a_context_is_a_sentence(monkeypatch, jetson, runtime, sources):
    def refuse(engine: Any, strategy: Any) -> None:
        engine.log.log(fake_trt.ILogger.ERROR, "[virtualMemoryBuffer] OutOfMemory (no further\n information)")

    monkeypatch.setattr(fake_trt.ICudaEngine, "create_execution_context", refuse)
    with pytest.raises(NotTestedError) as caught:
        StepDecoder(runtime, sources[:1])
    assert str(caught.value).startswith(
        "tensorrt 10.3.0 makes no execution context for encoder: [virtualMemoryBuffer] OutOfMemory (no further "
        "information) ("
    )
    assert str(caught.value).endswith("are free; close other programs that use it, or choose smaller buckets)")


def test_what_a_search_reads_comes_with_the_launch(jetson, runtime, sources):
    """A step behind its first two is one launch and one wait; candidates and their symbols are there then."""
    config = SearchConfig(beam=2, n_best=1)
    for _ in range(3):
        search(runtime, sources[:2], config)
    jetson.cuda.calls.clear()
    found = search(runtime, sources[:2], config)
    steps = jetson.cuda.calls["cudaGraphLaunch"]
    assert steps >= max(len(hypotheses[0].tokens) for hypotheses in found)
    assert jetson.cuda.calls["cudaStreamSynchronize"] <= steps + 2  # what the encoder waits for, and its first run
    assert jetson.cuda.calls["cudaMemcpyAsync"] <= 2  # the encoder's, which has a loop, so it is not captured


def test_tensorrt_rtx_compiles_its_kernels_once(jetson, bundle, sources):
    """They lie beside the engines, for the next process; what is no such file is compiled again."""
    config = SearchConfig(beam=2, n_best=1)
    expected = [h[0].tokens for h in search(OrtCpu(bundle, RuntimeOptions(threads=1)), sources[:2], config)]

    def decode() -> int:
        jetson.cuda.calls.clear()
        made = TrtRtx(bundle, RuntimeOptions(cache_dir=jetson.cache))
        assert [h[0].tokens for h in search(made, sources[:2], config)] == expected
        made.close()
        return jetson.cuda.calls[fake_trt.COMPILES]

    assert [decode(), decode()] == [1, 0]
    (kernels,) = jetson.cache.rglob("*.kernels")
    kernels.write_bytes(b"of another version")
    assert [decode(), decode()] == [1, 0]


def test_kernels_that_cannot_be_kept_are_no_fault(jetson, bundle, sources):
    made = TrtRtx(bundle, RuntimeOptions(cache_dir=jetson.cache))
    made._launches.contexts.kernels = jetson.cache / "none" / "of.kernels"
    search(made, sources[:2], SearchConfig())
    made.close()


def test_tensorrt_rtx_is_asked_before_a_capture(jetson, bundle, sources):
    made = TrtRtx(bundle, RuntimeOptions(cache_dir=jetson.cache))
    for _ in range(3):
        search(made, sources[:2], SearchConfig(beam=1))
    assert "as CUDA graphs: step; not capturable: encoder" in made.provider
    assert "cannot capture encoder: the graph has a loop" in made._launches.enqueued["encoder"]
    made.close()


def test_an_engine_of_another_graph(jetson, bundle):
    step = bundle.manifest.graphs["step"]
    jetson.change = lambda plan: fake_trt.build(bundle.read(step.file), fake_trt.header(plan)[0])
    with pytest.raises(NotTestedError, match=r"engine of encoder is not this bundle's: its .* is another; run: edge"):
        jetson.open(bundle)


def test_an_engine_of_other_profiles(jetson, bundle):
    jetson.change = lambda plan: fake_trt.build(fake_trt.model(plan), fake_trt.header(plan)[0][:2])
    with pytest.raises(NotTestedError, match="not this bundle's: it has 2 profiles; run: edge-attn cache clear"):
        jetson.open(bundle)


def test_a_profile_that_is_not_what_was_asked_for(jetson, bundle, sources):
    """An engine that is too narrow refuses, and the sentence has TensorRT's reason."""

    def narrow(plan: bytes) -> bytes:
        profiles = [{name: 3 * [len(s[0]) * [1]] for name, s in one.items()} for one in fake_trt.header(plan)[0]]
        return fake_trt.build(fake_trt.model(plan), profiles)

    jetson.change = narrow
    runtime = jetson.open(bundle)
    with pytest.raises(NotTestedError, match=r"does not take source of shape \(8, 6\): .* does not satisfy profile 1"):
        StepDecoder(runtime, [[5, 3]] * 8)
    runtime.close()


@pytest.mark.parametrize(
    ("call", "said"),
    [("set_optimization_profile_async", "does not take profile 0 of"), ("infer_shapes", "cannot infer the shapes of")],
)
def test_what_the_bindings_raise_is_a_sentence(monkeypatch, jetson, runtime, call, said):
    def fails(self: object, *arguments: object) -> bool:
        raise RuntimeError("Error in it")

    monkeypatch.setattr(fake_trt.IExecutionContext, call, fails)
    with pytest.raises(NotTestedError, match=said):
        StepDecoder(runtime, [[5, 3]])


def test_an_output_whose_shape_is_not_the_manifests(jetson, bundle, sources):
    graphs = dict(bundle.manifest.graphs)
    outputs = [
        dataclasses.replace(tensor, shape=("batch", "src", 9)) if tensor.name == "memory.keys" else tensor
        for tensor in graphs["encoder"].outputs
    ]
    graphs["encoder"] = dataclasses.replace(graphs["encoder"], outputs=tuple(outputs))
    target = dataclasses.replace(bundle.manifest.targets["trt-fp32"], graphs=graphs)
    changed = Bundle(bundle.path, dataclasses.replace(bundle.manifest, targets={target.name: target}), bundle.files())
    runtime = jetson.open(changed)
    with pytest.raises(BundleError, match=r"encoder gives memory.keys of shape \(1, 6, 8\), expected \(1, 6, 9\)"):
        StepDecoder(runtime, [[5, 3]])
    runtime.close()


PLANTED: list[tuple[str, Callable[[Trt], None], str]] = [
    (
        "a state is written where it is read",
        lambda runtime: setattr(runtime, "_output_buffer", lambda tensor, taken: runtime._buffers[tensor.name][0]),
        "lie in the same memory",
    ),
    (
        "two outputs share a buffer",
        lambda runtime: setattr(runtime, "_output_buffer", lambda tensor, taken: runtime._buffers["memory.values"][0]),
        "lie in the same memory",
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


@pytest.mark.parametrize(("plant", "said"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_a_fault_that_is_planted_is_found(jetson, bundle, sources, plant, said):
    runtime = jetson.open(bundle)
    taken = runtime._buffers.copy()
    plant(runtime)
    with pytest.raises(Fault, match=said):
        search(runtime, sources[:3], SearchConfig(beam=2, max_length=6))
    runtime._buffers.update(taken)
    jetson.cuda.revive()
    runtime.close()
