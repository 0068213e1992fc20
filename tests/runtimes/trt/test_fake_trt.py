"""The fake TensorRT and CUDA detect each mistake that a GPU would not report."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from typing import Any

import fake_cuda
import fake_trt
import numpy as np
import pytest
from fake_cuda import Fault
from paths import DATA

from edge_attn.bundle.bundle import Bundle
from edge_attn.runtimes.trt.cudart import Cuda
from edge_attn.runtimes.trt.profiles import Buckets


class Log(list):
    def log(self, severity: int, message: str) -> None:
        self.append(message)


class Encoder:
    """Encoder of the toy model on the fake, correctly set up for two sentences of three tokens."""

    def __init__(self, bundle: Bundle, loops: bool = False) -> None:
        self.library = fake_cuda.FakeCuda()
        self.cuda, self.log = Cuda(self.library), Log()
        spec = bundle.manifest.graphs["encoder"]
        plan = fake_trt.build(
            bundle.read(spec.file), [p.shapes(spec) for p in Buckets((2,), (3,)).profiles(spec, 3)], loops=loops
        )
        self.engine = fake_trt.FakeTrt(self.library).Runtime(self.log).deserialize_cuda_engine(plan)
        self.context = self.engine.create_execution_context(fake_trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.stream = self.cuda.create_stream()
        self.pinned = self.cuda.allocate_pinned(48, "pinned")
        self.scratch = self.cuda.allocate(4096, "scratch")
        self.context.set_device_memory(self.scratch, 4096)
        assert self.context.set_optimization_profile_async(0, self.stream)
        assert self.context.set_input_shape("source", (2, 3))
        assert self.context.set_input_shape("source_length", (2,))
        self.addresses = {}
        for name in self.engine.tensors:
            self.addresses[name] = self.cuda.allocate(self.context._size(name), name)
            assert self.context.set_tensor_address(name, self.addresses[name])
        self.feed("source", np.full((2, 3), 5))
        self.feed("source_length", np.full(2, 3))

    def feed(self, name: str, value: np.ndarray) -> None:
        ctypes.memmove(self.pinned, value.ctypes.data, value.nbytes)
        self.cuda.to_device(self.addresses[name], self.pinned, value.nbytes, self.stream)
        self.cuda.synchronize(self.stream)

    def run(self) -> None:
        assert self.context.execute_async_v3(self.stream), self.log
        self.cuda.synchronize(self.stream)

    def capture(self) -> int:
        self.cuda.begin_capture(self.stream)
        assert self.context.execute_async_v3(self.stream)
        return self.cuda.end_capture(self.stream)

    def close(self) -> None:
        for address in [*self.addresses.values(), self.scratch]:
            self.cuda.free(address)
        self.cuda.free_pinned(self.pinned)
        self.cuda.destroy_stream(self.stream)


@pytest.fixture
def encoder(toy_bundle) -> Encoder:
    return Encoder(Bundle.open(toy_bundle))


def test_correct_use_raises_no_fault(encoder):
    encoder.run()
    encoder.run()
    graph = encoder.capture()
    encoder.cuda.launch(graph, encoder.stream)
    encoder.cuda.synchronize(encoder.stream)
    encoder.cuda.destroy_graph(graph)
    assert encoder.library.leaks() != []
    encoder.close()
    assert encoder.library.leaks() == []


def too_small(encoder: Encoder) -> None:
    encoder.context.set_tensor_address(
        "memory.keys", encoder.cuda.allocate(encoder.context._size("memory.keys") - 1, "")
    )
    encoder.run()


def freed_before(encoder: Encoder) -> None:
    encoder.cuda.free(encoder.addresses["source"])
    encoder.run()


def freed_meanwhile(encoder: Encoder) -> None:
    encoder.context.execute_async_v3(encoder.stream)
    encoder.cuda.free(encoder.addresses["source"])


def freed_twice(encoder: Encoder) -> None:
    encoder.cuda.free(encoder.addresses["source"])
    encoder.cuda.free(encoder.addresses["source"])


def freed_before_a_graph(encoder: Encoder) -> None:
    encoder.run()
    graph = encoder.capture()
    encoder.cuda.free(encoder.addresses["memory.mask"])
    encoder.cuda.launch(graph, encoder.stream)


def changed_after_capture(encoder: Encoder) -> None:
    encoder.run()
    graph = encoder.capture()
    encoder.context.set_tensor_address("source", encoder.addresses["source"])
    encoder.cuda.launch(graph, encoder.stream)
    encoder.cuda.synchronize(encoder.stream)


def host_memory(encoder: Encoder) -> None:
    encoder.context.set_tensor_address("source", encoder.pinned)
    encoder.run()


def not_allocated(encoder: Encoder) -> None:
    encoder.cuda.to_device(encoder.addresses["source"], np.zeros(6, np.int64).ctypes.data, 48, encoder.stream)


def destroyed_too_early(encoder: Encoder) -> None:
    encoder.context.execute_async_v3(encoder.stream)
    encoder.cuda.destroy_stream(encoder.stream)


def graph_destroyed_twice(encoder: Encoder) -> None:
    encoder.run()
    graph = encoder.capture()
    encoder.cuda.destroy_graph(graph)
    encoder.cuda.destroy_graph(graph)


def error_left_behind(encoder: Encoder) -> None:
    encoder.library.cudaMalloc(ctypes.byref(ctypes.c_void_p()), 1 << 40)
    encoder.run()


def same_memory(encoder: Encoder) -> None:
    encoder.addresses["source"] = encoder.cuda.allocate(1 << 12, "")
    encoder.context.set_tensor_address("source", encoder.addresses["source"])
    encoder.context.set_tensor_address("memory.values", encoder.addresses["source"] + 40)
    encoder.run()


def little_scratch(encoder: Encoder) -> None:
    encoder.context.set_device_memory(encoder.scratch, 4095)
    encoder.run()


FAULTS: list[tuple[Callable[[Encoder], Any], str]] = [
    (too_small, "memory.keys: 1 bytes past its buffer"),
    (freed_before, "source: use after free"),
    (freed_meanwhile, "freed memory that a stream still uses"),
    (freed_twice, "double free"),
    (lambda encoder: encoder.cuda.free(4096), "freed memory that was never allocated"),
    (freed_before_a_graph, "memory.mask: use after free"),
    (changed_after_capture, "a context was changed after it was captured"),
    (lambda encoder: encoder.capture(), "captured before a run"),
    (host_memory, "source: memory of the wrong kind"),
    (not_allocated, "not allocated by CUDA"),
    (destroyed_too_early, "a stream was destroyed before it was synchronized"),
    (graph_destroyed_twice, "Ready .* was destroyed twice"),
    (error_left_behind, "the error 2 of an earlier call was not cleared"),
    (same_memory, "memory.values and source use the same memory"),
    (little_scratch, "4095 bytes of scratch memory, 4096 are needed"),
]


@pytest.mark.parametrize(("misuse", "message"), FAULTS)
def test_misuse_raises_a_fault(encoder, misuse, message):
    with pytest.raises(Fault, match=message):
        misuse(encoder)


INVALID_ARGUMENTS: list[tuple[Callable[[Any], bool], str]] = [
    (lambda context: context.set_input_shape("source", (3, 3)), r"source of shape \(3, 3\) does not satisfy profile 0"),
    (lambda context: context.set_input_shape("source", (2, 4)), r"does not satisfy profile 0: \[2, 3\] to \[2, 3\]"),
    (lambda context: context.set_input_shape("source", (2,)), "does not satisfy"),
    (lambda context: context.set_input_shape("memory.keys", (2, 3, 8)), "of no input"),
    (lambda context: context.set_tensor_address("nothing", 0), "no tensor nothing"),
]


@pytest.mark.parametrize(("call", "message"), INVALID_ARGUMENTS)
def test_invalid_arguments_are_logged(encoder, call, message):
    assert call(encoder.context) is False
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(encoder.log.pop())


def test_unknown_profile_raises(encoder):
    """The bindings raise an exception instead of returning False."""
    with pytest.raises(RuntimeError):
        encoder.context.set_optimization_profile_async(1, 0)
    assert "profile 1 of 1" in encoder.log.pop()


def test_missing_shape_or_address_is_logged(encoder):
    fresh = encoder.engine.create_execution_context(fake_trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    assert fresh.set_optimization_profile_async(0, encoder.stream)
    assert fresh.infer_shapes() == ["source", "source_length"]
    assert fresh.get_tensor_shape("memory.keys") == (-1, -1, 8)
    assert not fresh.execute_async_v3(encoder.stream)
    assert fresh.set_input_shape("source", (2, 3))
    assert fresh.set_input_shape("source_length", (2,))
    assert not fresh.execute_async_v3(encoder.stream)
    assert encoder.log == [
        "no shape for ['source', 'source_length']",
        "neither address nor allocator is set for source",
    ]


def test_outputs_are_written_at_synchronization(encoder):
    before = ctypes.string_at(encoder.addresses["memory.keys"], 16)
    encoder.context.execute_async_v3(encoder.stream)
    assert ctypes.string_at(encoder.addresses["memory.keys"], 16) == before
    encoder.cuda.synchronize(encoder.stream)
    assert ctypes.string_at(encoder.addresses["memory.keys"], 16) != before


def test_loop_invalidates_a_capture(toy_bundle):
    encoder = Encoder(Bundle.open(toy_bundle), loops=True)
    encoder.run()
    encoder.cuda.begin_capture(encoder.stream)
    assert not encoder.context.execute_async_v3(encoder.stream)
    handle = ctypes.c_void_p()
    assert encoder.library.cudaStreamEndCapture(encoder.stream, ctypes.byref(handle)) == 901
    assert encoder.library.cudaGetLastError() == 901
    encoder.run()


RECORDING = DATA / "tensorrt-surface.json"


@pytest.mark.parametrize("name", ["ILogger", "Runtime", "ICudaEngine", "IExecutionContext", "DataType", "TensorIOMode"])
def test_fake_attributes_exist_in_tensorrt(name):
    ours = {attribute for attribute in vars(getattr(fake_trt, name)) if not attribute.startswith("_")}
    assert ours
    assert ours <= json.loads(RECORDING.read_text(encoding="utf-8"))["classes"][name].keys()
