"""What the runtime `trt` holds on the device, and for how long; on the fake (conftest.py)."""

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
from edge_attn.runtimes.trt import buffers as trt_memory
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
    assert copied() == 6  # in: tokens, parents; out: the candidates and their symbols
    runtime.numpy(outputs["candidates"])
    assert copied() == 6
    runtime.numpy(outputs["log_probs"])
    assert copied() == 7
    for _ in range(4):
        outputs = decoding.step(tokens, parents)
    before = copied(), jetson.cuda.calls["cudaGraphLaunch"]
    decoding.step(tokens, parents)  # as a CUDA graph, in which its four copies are
    assert (copied(), jetson.cuda.calls["cudaGraphLaunch"]) == (before[0], before[1] + 1)


def test_a_state_moves_between_two_buffers(runtime, sources):
    decoding = StepDecoder(runtime, sources[:1])
    seen = [decoding._state["state.hidden.0"].buffer.address]
    for _ in range(4):
        outputs = decoding.step(np.full((1, 1), BOS), np.zeros((1, 1), np.int64))
        seen.append(outputs["next_state.hidden.0"].buffer.address)
    assert seen[1] == seen[3] != seen[2] == seen[4]
    assert seen[0] not in seen[1:]


def test_memory_does_not_grow(jetson, runtime, sources):
    config = SearchConfig(beam=3, max_length=8)
    runtime_bytes = runtime.device_memory
    assert jetson.cuda.used() == runtime_bytes
    held = []
    for i in range(100):
        search(runtime, [sources[(7 * i + k) % len(sources)] for k in range(1 + i % 9)], config, True)
        held.append((jetson.cuda.used(), jetson.cuda.used(pinned=True), len(jetson.cuda.blocks)))
    assert set(held) == {(runtime_bytes, jetson.cuda.used(pinned=True), len(jetson.cuda.blocks))}
    assert runtime.device_memory == runtime_bytes


def test_everything_is_freed_once(jetson, bundle, sources):
    runtime = jetson.open(bundle)
    search(runtime, sources[:3], SearchConfig(beam=2, max_length=5))
    assert jetson.cuda.leaks() != []
    runtime.close()
    assert jetson.cuda.leaks() == []
    runtime.close()
    for use in (lambda: runtime.run("encoder", {}), lambda: StepDecoder(runtime, sources[:1])):
        with pytest.raises(UsageError, match="the runtime trt was closed"):
            use()


def test_a_runtime_that_nobody_holds_frees_itself(jetson, bundle, sources):
    runtime = jetson.open(bundle)
    StepDecoder(runtime, sources[:2])
    del runtime
    gc.collect()
    assert jetson.cuda.leaks() == []


FALLIBLE = {"cudaStreamCreateWithFlags": 1, "cudaMallocHost": 7, "cudaMalloc": 15}
"""How often a constructor calls what takes something."""


@pytest.mark.parametrize(("name", "spared"), [(name, k) for name, calls in FALLIBLE.items() for k in range(calls)])
def test_a_constructor_that_fails_half_way_frees_what_it_had(jetson, bundle, name, spared):
    jetson.cuda.fail(name, 999, spared)
    with pytest.raises(NotTestedError, match=name):
        jetson.open(bundle)
    assert jetson.cuda.leaks() == []
    jetson.cuda.failing.clear()
    jetson.open(bundle).close()
    assert {name: jetson.cuda.calls[name] - spared - 1 for name in FALLIBLE}[name] == FALLIBLE[name]


LEFT = {"cudaGraphExecDestroy": "Ready", "cudaFree": "bytes", "cudaFreeHost": "pinned", "cudaStreamDestroy": "Stream"}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_freed_is_said_and_the_rest_is_freed(jetson, bundle, sources, name):
    runtime = jetson.open(bundle)
    search(runtime, sources[:3], SearchConfig(beam=2, max_length=12))
    jetson.cuda.fail(name, 700)
    with pytest.raises(NotTestedError, match=f"CUDA failed in {name}"):
        runtime.close()
    kinds = {left.rpartition(" ")[2] for left in jetson.cuda.leaks()}
    assert kinds == {LEFT[name]}
    assert jetson.cuda.calls[name] == len(jetson.cuda.leaks())
    jetson.cuda.forget()


def test_out_of_memory_is_a_sentence(jetson, bundle):
    jetson.open(bundle).close()
    other = Cuda(jetson.cuda)
    hog = other.allocate(jetson.cuda.total - 50_000, "another program")
    with pytest.raises(NotTestedError) as caught:
        jetson.open(bundle)
    other.free(hog)
    assert str(caught.value).startswith("the GPU has too little memory: ")
    assert " of 1,024.0 MiB are free; close other programs that use it, or choose smaller buckets" in str(caught.value)


def test_numpy_values_are_taken_too(runtime, bundle, sources):
    """Memory and states that somebody held, and hands back as arrays, padded or not."""
    reference = OrtCpu(bundle, RuntimeOptions(threads=1))
    ours, theirs = (StepDecoder(one, sources[:3]) for one in (runtime, reference))
    for held in (ours._memory, ours._state):
        held.update({name: runtime.numpy(value) for name, value in held.items()})
    tokens, parents = np.full((3, 1), BOS), np.zeros((3, 1), np.int64)
    for beam in (1, 4, 4):
        found, expected = ours.step(tokens, parents), theirs.step(tokens, parents)
        for name in expected:
            np.testing.assert_allclose(runtime.numpy(found[name]), reference.numpy(expected[name]), atol=1e-5)
        ours._state = {name: runtime.numpy(value) for name, value in ours._state.items()}
        tokens, parents = np.full((3, beam), 5), np.zeros((3, beam), np.int64)
    assert runtime.numpy(tokens) is tokens


def test_what_is_larger_than_the_way_back_comes_in_parts(monkeypatch, jetson, bundle, sources):
    monkeypatch.setattr(trt_memory, "TRANSFER", 100)
    runtime = jetson.open(bundle)
    test_numpy_values_are_taken_too(runtime, bundle, sources)
    runtime.close()


def test_pinned_memory_that_is_written_too_early_shows(monkeypatch, runtime, sources):
    """Two steps, and nothing is read between: the first must have its tokens before the second's take their place."""

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


def test_encoder_outputs_live_as_long_as_their_batch(runtime, sources):
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


def test_a_state_lives_until_the_second_step_after_it(runtime, sources):
    decoding = StepDecoder(runtime, sources[:2])
    seen = []
    for _ in range(3):
        outputs = decoding.step(np.full((2, 1), BOS), np.zeros((2, 1), np.int64))
        seen.append((outputs, runtime.numpy(outputs["next_state.hidden.0"])))
    for outputs, value in seen[1:]:
        np.testing.assert_array_equal(runtime.numpy(outputs["next_state.hidden.0"]), value)
    for outputs, name in ((seen[0][0], "next_state.hidden.0"), (seen[1][0], "candidates"), (seen[1][0], "log_probs")):
        with pytest.raises(EdgeAttnError, match=f"{name} was overwritten"):
            runtime.numpy(outputs[name])


def test_a_step_may_be_done_again(runtime, sources):
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


def test_a_value_of_another_runtime(jetson, bundle, sources):
    one, other = jetson.open(bundle), jetson.open(bundle)
    decoding = StepDecoder(one, sources[:2])
    with pytest.raises(EdgeAttnError, match=r"memory.keys is of another runtime"):
        other.numpy(decoding.encoded["memory.keys"])
    one.close()
    other.close()
