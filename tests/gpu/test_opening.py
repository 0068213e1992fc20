"""Tests of open_or_skip: a missing library skips the test, a fault of a running runtime fails it."""

from __future__ import annotations

import on_a_gpu
import pytest
from on_a_gpu import open_or_skip

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import BundleError, InputError, NotTestedError
from edge_attn.runtimes.ort.cpu import OrtCpu

OPTIONS = RuntimeOptions()
UNAVAILABLE = [
    NotTestedError("TensorRT does not load here (no module tensorrt)"),
    NotTestedError("tensorrt_rtx 1.7.1 creates no execution context for step: SM 9.0 (1.0 of 2.0 MiB are free)"),
    NotTestedError("the GPU does not run the graph 'step': CUDA failure 209: no kernel image is available"),
    NotTestedError("CUDA failed in cudaGraphLaunch: cudaErrorNoKernelImageForDevice: no kernel image; run: ..."),
    NotTestedError("there is no NVIDIA GPU that CUDA can use here: libcudart.so: CUDA failed in cudaGetDeviceCount"),
    InputError("step.onnx cannot be built with tensorrt_rtx 1.7.1: unsupported compute capability 9.0"),
]
FAULTS = [
    NotTestedError("CUDA failed in cudaStreamSynchronize: cudaErrorIllegalAddress: an illegal memory access; run: ..."),
    NotTestedError("CUDA failed in cudaMemcpyAsync: cudaErrorInvalidValue: invalid argument; run: edge-attn doctor"),
    NotTestedError("the GPU does not run the graph 'step': CUDA failure 700: an illegal memory access; run: ..."),
    NotTestedError("tensorrt 10.3.0 does not run step: Error Code 1: Cuda Runtime (misaligned address)"),
    InputError("step.onnx cannot be built with tensorrt 10.3.0: node_3 (TopK): K must be constant"),
    BundleError("b.zip: the graph 'step' has no output 'candidates', which a seq2seq bundle needs"),
    RuntimeError("anything else"),
]


@pytest.fixture(params=["open", "run"])
def opening(request, monkeypatch, toy_bundle):
    """Open a runtime that raises an error when it opens, or in its first run; check that it is closed."""
    closed: list[OrtCpu] = []

    def opening(error: Exception | None):
        class Failing(OrtCpu):
            def run(self, graph, inputs):
                if error is not None and graph == "step":
                    raise error
                return super().run(graph, inputs)

            def close(self):
                closed.append(self)

        def open_runtime(bundle, name, options):
            if error is not None and request.param == "open":
                raise error
            return Failing(bundle, options)

        monkeypatch.setattr(on_a_gpu, "open_runtime", open_runtime)
        return open_or_skip(Bundle.open(toy_bundle), "trt", OPTIONS)

    yield opening
    assert len(closed) == (request.param == "run")


@pytest.mark.parametrize("error", UNAVAILABLE, ids=str)
def test_unavailable_runtime_is_skipped_with_its_reason(opening, error):
    with pytest.raises(pytest.skip.Exception) as skipped:
        opening(error)
    assert str(skipped.value) == f"needs an NVIDIA GPU with trt: {error}"


@pytest.mark.parametrize("error", FAULTS, ids=str)
def test_fault_is_raised(opening, error):
    with pytest.raises(type(error)) as raised:
        opening(error)
    assert raised.value is error


def test_runtime_that_runs_stays_open(monkeypatch, toy_bundle):
    monkeypatch.setattr(on_a_gpu, "open_runtime", lambda bundle, name, options: OrtCpu(bundle, options))
    assert open_or_skip(Bundle.open(toy_bundle), "trt", OPTIONS).run
