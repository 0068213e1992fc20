"""Lifetime of the device memory of the runtime `trt`, on the fake TensorRT of conftest.py."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.beam_search import search
from edge_attn.decoding.decoder import StepDecoder
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import EdgeAttnError, NotTestedError, UsageError
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.trt import buffers as buffers
from edge_attn.runtimes.trt import runtime as trt
from edge_attn.runtimes.trt.cudart import Cuda
from edge_attn.text.tokenizers import BOS


def test_states_and_memory_stay_on_the_device(jetson, runtime, sources):
    def copied() -> int:
        return int(jetson.cuda.calls["cudaMemcpyAsync"])

    decoding = StepDecoder(runtime, sources[:8])
    assert copied() == 2  # source, source_length
    tokens, parents = np.full((8, 1), BOS), np.zeros((8, 1), np.int64)
    outputs = decoding.step(tokens, parents)
    assert copied() == 6  # in: tokens, parents; out: candidates, candidate_ids
    runtime.numpy(outputs["candidates"])
    assert copied() == 6
    runtime.numpy(outputs["log_probs"])
    assert copied() == 7
    for _ in range(4):
        outputs = decoding.step(tokens, parents)
    before = copied(), jetson.cuda.calls["cudaGraphLaunch"]
    decoding.step(tokens, parents)  # the CUDA graph contains its four copies
    assert (copied(), jetson.cuda.calls["cudaGraphLaunch"]) == (before[0], before[1] + 1)


def test_state_alternates_between_two_buffers(runtime, sources):
    decoding = StepDecoder(runtime, sources[:1])
    addresses = [decoding._state["state.hidden.0"].buffer.address]
    for _ in range(4):
        outputs = decoding.step(np.full((1, 1), BOS), np.zeros((1, 1), np.int64))
        addresses.append(outputs["next_state.hidden.0"].buffer.address)
    assert addresses[1] == addresses[3] != addresses[2] == addresses[4]
    assert addresses[0] not in addresses[1:]


def test_device_memory_does_not_grow(jetson, runtime, sources):
    config = SearchConfig(beam=3, max_length=8)
    runtime_bytes = runtime.device_memory
    assert jetson.cuda.used() == runtime_bytes
    usage = []
    for i in range(100):
        search(runtime, [sources[(7 * i + k) % len(sources)] for k in range(1 + i % 9)], config, True)
        usage.append((jetson.cuda.used(), jetson.cuda.used(pinned=True), len(jetson.cuda.blocks)))
    assert set(usage) == {(runtime_bytes, jetson.cuda.used(pinned=True), len(jetson.cuda.blocks))}
    assert runtime.device_memory == runtime_bytes


def test_close_frees_everything_once(jetson, bundle, sources):
    runtime = jetson.open(bundle)
    search(runtime, sources[:3], SearchConfig(beam=2, max_length=5))
    assert jetson.cuda.leaks() != []
    runtime.close()
    assert jetson.cuda.leaks() == []
    runtime.close()
    for call in (lambda: runtime.run("encoder", {}), lambda: StepDecoder(runtime, sources[:1])):
        with pytest.raises(UsageError, match="the runtime trt was closed"):
            call()


def test_garbage_collected_runtime_frees_its_memory(jetson, bundle, sources):
    runtime = jetson.open(bundle)
    StepDecoder(runtime, sources[:2])
    del runtime
    gc.collect()
    assert jetson.cuda.leaks() == []


ALLOCATION_CALLS = {"cudaStreamCreateWithFlags": 1, "cudaMallocHost": 7, "cudaMalloc": 15}
"""Number of calls of each allocating function in a constructor."""


@pytest.mark.parametrize(
    ("name", "successes"), [(name, k) for name, calls in ALLOCATION_CALLS.items() for k in range(calls)]
)
def test_failed_constructor_frees_its_allocations(jetson, bundle, name, successes):
    jetson.cuda.fail(name, 999, successes)
    with pytest.raises(NotTestedError, match=name):
        jetson.open(bundle)
    assert jetson.cuda.leaks() == []
    jetson.cuda.failing.clear()
    jetson.open(bundle).close()
    assert {name: jetson.cuda.calls[name] - successes - 1 for name in ALLOCATION_CALLS}[name] == ALLOCATION_CALLS[name]


LEAKED_KINDS = {
    "cudaGraphExecDestroy": "Ready",
    "cudaFree": "bytes",
    "cudaFreeHost": "pinned",
    "cudaStreamDestroy": "Stream",
}


@pytest.mark.parametrize("name", LEAKED_KINDS)
def test_failed_free_is_reported_and_the_rest_is_freed(jetson, bundle, sources, name):
    runtime = jetson.open(bundle)
    search(runtime, sources[:3], SearchConfig(beam=2, max_length=12))
    jetson.cuda.fail(name, 700)
    with pytest.raises(NotTestedError, match=f"CUDA failed in {name}"):
        runtime.close()
    kinds = {leak.rpartition(" ")[2] for leak in jetson.cuda.leaks()}
    assert kinds == {LEAKED_KINDS[name]}
    assert jetson.cuda.calls[name] == len(jetson.cuda.leaks())
    jetson.cuda.forget()


def test_out_of_memory_error_names_the_remedy(jetson, bundle):
    jetson.open(bundle).close()
    cuda = Cuda(jetson.cuda)
    other_program = cuda.allocate(jetson.cuda.total - 50_000, "another program")
    with pytest.raises(NotTestedError) as caught:
        jetson.open(bundle)
    cuda.free(other_program)
    assert str(caught.value).startswith("the GPU has too little memory: ")
    assert " of 1,024.0 MiB are free; close other programs that use it, or choose smaller buckets" in str(caught.value)


def test_numpy_arrays_are_accepted_as_inputs(runtime, bundle, sources):
    """Memory and states may be passed back as arrays."""
    reference = OrtCpu(bundle, RuntimeOptions(threads=1))
    ours, theirs = (StepDecoder(either, sources[:3]) for either in (runtime, reference))
    for values in (ours._memory, ours._state):
        values.update({name: runtime.numpy(value) for name, value in values.items()})
    tokens, parents = np.full((3, 1), BOS), np.zeros((3, 1), np.int64)
    for beam in (1, 4, 4):
        actual, expected = ours.step(tokens, parents), theirs.step(tokens, parents)
        for name in expected:
            np.testing.assert_allclose(runtime.numpy(actual[name]), reference.numpy(expected[name]), atol=1e-5)
        ours._state = {name: runtime.numpy(value) for name, value in ours._state.items()}
        tokens, parents = np.full((3, beam), 5), np.zeros((3, beam), np.int64)
    assert runtime.numpy(tokens) is tokens


def test_large_values_are_copied_in_chunks(monkeypatch, jetson, bundle, sources):
    monkeypatch.setattr(buffers, "CHUNK", 100)
    runtime = jetson.open(bundle)
    test_numpy_arrays_are_accepted_as_inputs(runtime, bundle, sources)
    runtime.close()


def test_missing_synchronization_corrupts_pinned_memory(monkeypatch, runtime, sources):
    """The tokens of the second step must not replace those of the first before they are copied."""

    def second_state() -> np.ndarray:
        decoding = StepDecoder(runtime, sources[:2])
        for token in (BOS, 5):
            outputs = decoding.step(np.full((2, 1), token), np.zeros((2, 1), np.int64))
        return runtime.numpy(outputs["next_state.hidden.0"])

    expected = second_state()
    np.testing.assert_array_equal(second_state(), expected)
    monkeypatch.setattr(trt.DeviceMemory, "synchronize", lambda self: None)
    assert np.abs(second_state() - expected).max() > 0.01
    monkeypatch.undo()


def test_encoder_outputs_are_valid_until_the_next_encoder_run(runtime, sources):
    first = StepDecoder(runtime, sources[:2])
    keys = runtime.numpy(first.encoded["memory.keys"])
    state = runtime.numpy(first.encoded["state.hidden.0"])
    for _ in range(5):
        first.step(np.full((2, 1), BOS), np.zeros((2, 1), np.int64))
    np.testing.assert_array_equal(runtime.numpy(first.encoded["memory.keys"]), keys)
    np.testing.assert_array_equal(runtime.numpy(first.encoded["state.hidden.0"]), state)
    StepDecoder(runtime, sources[2:4])
    with pytest.raises(EdgeAttnError, match=r"memory.keys was overwritten by a later run") as caught:
        runtime.numpy(first.encoded["memory.keys"])
    assert caught.value.exit_code == 70
    with pytest.raises(EdgeAttnError, match="overwritten"):
        first.step(np.full((2, 1), BOS), np.zeros((2, 1), np.int64))


def test_state_is_valid_until_the_second_next_step(runtime, sources):
    decoding = StepDecoder(runtime, sources[:2])
    steps = []
    for _ in range(3):
        outputs = decoding.step(np.full((2, 1), BOS), np.zeros((2, 1), np.int64))
        steps.append((outputs, runtime.numpy(outputs["next_state.hidden.0"])))
    for outputs, value in steps[1:]:
        np.testing.assert_array_equal(runtime.numpy(outputs["next_state.hidden.0"]), value)
    for k, name in ((0, "next_state.hidden.0"), (1, "candidates"), (1, "log_probs")):
        with pytest.raises(EdgeAttnError, match=f"{name} was overwritten"):
            runtime.numpy(steps[k][0][name])


def test_repeated_step_gives_equal_results(runtime, sources):
    decoding = StepDecoder(runtime, sources[:2])
    step = {
        "tokens": np.full((2, 1), BOS),
        "parents": np.zeros((2, 1), np.int64),
        **decoding._memory,
        **decoding._state,
    }
    results = [runtime.numpy(runtime.run("step", step)["log_probs"]) for _ in range(3)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_value_of_another_runtime_is_rejected(jetson, bundle, sources):
    first, second = jetson.open(bundle), jetson.open(bundle)
    decoding = StepDecoder(first, sources[:2])
    with pytest.raises(EdgeAttnError, match=r"memory.keys belongs to another runtime"):
        second.numpy(decoding.encoded["memory.keys"])
    first.close()
    second.close()
