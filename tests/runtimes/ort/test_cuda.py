"""The runtime `ort-cuda` without a GPU: errors of a missing provider, and results with the CPU provider in its place.

Tests that need a GPU are in tests/gpu.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import platform
import sys

import numpy as np
import onnxruntime as ort
import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.beam_search import search
from edge_attn.decoding.decoder import StepDecoder
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import BundleError, MissingExtraError, NotTestedError
from edge_attn.parity import reader
from edge_attn.runtimes.base import open_runtime
from edge_attn.runtimes.ort import cuda as cuda
from edge_attn.runtimes.ort.cpu import OrtCpu, onnxruntime_packages
from edge_attn.runtimes.ort.cuda import OrtCuda, provider_fault
from edge_attn.runtimes.verification.verify import check
from edge_attn.text.tokenizers import BOS

FALLBACK = RuntimeOptions(allow_fallback=True)
CUDA = "CUDAExecutionProvider"


class OrtCudaOnCpu(OrtCuda):
    """The runtime `ort-cuda` with the CPU provider in place of the CUDA provider."""

    device = "cpu"
    required_provider = "CPUExecutionProvider"
    provider_options = {}  # noqa: RUF012


@pytest.fixture
def bundle(toy_bundle) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture
def no_cuda(monkeypatch):
    """ONNX Runtime without its CUDA provider, independent of the installed packages."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def install_packages(monkeypatch, *names: str) -> None:
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"onnxruntime": list(names)})


# ---- missing provider


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(
    ("packages", "message"),
    [
        (
            [],
            "has no CUDAExecutionProvider; run: pip install 'edge-attn[gpu]'; or run on the CPU with `allow_fallback`",
        ),
        (["onnxruntime"], "; run: pip uninstall -y onnxruntime && pip install 'edge-attn[gpu]'; or"),
        (
            ["onnxruntime-gpu", "onnxruntime", "onnxruntime"],
            "onnxruntime and onnxruntime-gpu overwrite each other, so remove both; "
            "run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'edge-attn[gpu]'; or",
        ),
    ],
)
def test_missing_provider_names_the_next_command(bundle, monkeypatch, packages, message):
    install_packages(monkeypatch, *packages)
    with pytest.raises(NotTestedError) as caught:
        open_runtime(bundle, "ort-cuda")
    assert caught.value.exit_code == 3
    assert message in str(caught.value)


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("packages", [["onnxruntime"], ["onnxruntime", "onnxruntime-gpu"]])
def test_jetson_gets_no_pip_advice(monkeypatch, packages):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    install_packages(monkeypatch, *packages)
    fault = provider_fault(CUDA)
    assert "use the runtime trt, or an onnxruntime that was built for this board" in fault
    assert "pip install" not in fault
    assert ("overwrite each other" in fault) == (len(packages) > 1)


def test_onnxruntime_packages_are_installed():
    assert onnxruntime_packages()
    assert all("onnxruntime" in name or name.startswith("ort") for name in onnxruntime_packages())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            "libcublasLt.so.13: cannot open shared object file: No such file or directory",
            "does not load: libcublasLt.so.13: cannot open shared object file: No such file or directory; "
            "run: pip install 'onnxruntime-gpu[cuda,cudnn]'; or",
        ),
        ("libcuda.so.1: cannot open shared object file", "no GPU, or no driver for it; or run on the CPU"),
    ],
)
def test_missing_library_is_named(bundle, monkeypatch, tmp_path, error, message):
    """A missing library of CUDA or of the driver is reported before a session is opened."""

    def fail(path: str, mode: int = 0) -> None:
        if "providers_cuda" in path:
            raise OSError(error)

    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").touch()
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ctypes, "CDLL", fail)
    monkeypatch.setattr(cuda, "open_session", None)
    with pytest.raises(NotTestedError) as caught:
        OrtCuda(bundle)
    assert message in str(caught.value)


NO_DRIVER = (
    "/src/cuda_call.cc:154 std::conditional_t<THRW, void> CUDA failure 35: CUDA driver version is insufficient for "
    "CUDA runtime version ; GPU=-1 ; hostname=device ; file=/src/cuda_execution_provider.cc ; line=355 ; expr=x();"
)


def failing_open_session(message: str):
    """Return an `open_session` that raises an error of ONNX Runtime for the CUDA provider."""

    def open_session(bundle, spec, settings, providers):
        if providers[0][0] == "CPUExecutionProvider":
            return ort.InferenceSession(bundle.read(spec.file), settings, providers=providers)
        raise BundleError("not a graph that loads") from RuntimeError(message)

    return open_session


@pytest.fixture
def no_provider_fault(monkeypatch):
    """Let the provider seem available until a session uses it."""
    monkeypatch.setattr(cuda, "provider_fault", lambda provider: None)


@pytest.mark.usefixtures("no_provider_fault")
def test_failing_provider_is_not_a_bundle_error(bundle, monkeypatch):
    monkeypatch.setattr(cuda, "open_session", failing_open_session(NO_DRIVER))
    with pytest.raises(NotTestedError) as caught:
        OrtCuda(bundle)
    message = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version; run: edge-attn doctor; or"
    assert message in str(caught.value)
    assert OrtCuda(bundle, FALLBACK).provider == f"CPUExecutionProvider in place of {CUDA}"


@pytest.mark.usefixtures("no_provider_fault")
@pytest.mark.parametrize("options", [RuntimeOptions(), FALLBACK])
def test_invalid_graph_is_a_bundle_error(bundle, monkeypatch, options):
    monkeypatch.setattr(cuda, "open_session", failing_open_session("Protobuf parsing failed"))
    with pytest.raises(BundleError):
        OrtCuda(bundle, options)


@pytest.mark.usefixtures("no_provider_fault")
def test_silently_unused_provider_is_an_error(bundle, monkeypatch):
    """ONNX Runtime prints a line and uses the CPU if the provider's library does not load."""
    open_session = cuda.open_session

    def open_on_cpu(bundle, spec, settings, providers):
        return open_session(bundle, spec, settings, ["CPUExecutionProvider"])

    monkeypatch.setattr(cuda, "open_session", open_on_cpu)
    with pytest.raises(NotTestedError, match=f"does not use {CUDA}; run: edge-attn doctor"):
        OrtCuda(bundle)


@pytest.mark.parametrize("runtime", [OrtCpu, OrtCuda])
def test_empty_onnxruntime_module_names_the_reinstall(bundle, monkeypatch, runtime):
    """An empty module remains after pip removes one of two packages of onnxruntime."""
    install_packages(monkeypatch, "onnxruntime-gpu")
    for name in ("InferenceSession", "SessionOptions", "get_available_providers"):
        monkeypatch.delattr(ort, name)
    with pytest.raises(NotTestedError, match="pip install --force-reinstall --no-deps onnxruntime-gpu"):
        runtime(bundle)


def test_missing_onnxruntime_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "edge_attn.runtimes.ort.cuda")
    with pytest.raises(MissingExtraError, match=r"onnxruntime is not installed; run: pip install 'edge-attn\[gpu\]'"):
        importlib.import_module("edge_attn.runtimes.ort.cuda")


@pytest.mark.usefixtures("no_cuda")
def test_command_line_reports_a_missing_provider(edge_attn_cli, toy_bundle):
    edge_attn_cli("verify", toy_bundle, "--runtime", "ort-cuda", code=3, error="ort-cuda does not run here")


# ---- with the CPU provider in its place


def tokens(runtime, sources) -> list[list[tuple[int, ...]]]:
    results = search(runtime, sources, SearchConfig(beam=4, n_best=4))
    return [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in results]


@pytest.mark.usefixtures("no_cuda")
def test_allowed_fallback_gives_equal_results(bundle):
    runtime = open_runtime(bundle, "ort-cuda", FALLBACK)
    assert runtime.name == "ort-cuda"
    assert runtime.provider == f"CPUExecutionProvider in place of {CUDA}"
    sources = reader.load(bundle).sources[:16]
    assert tokens(runtime, sources) == tokens(OrtCpu(bundle), sources)


def test_outputs_are_device_values(bundle):
    runtime = OrtCudaOnCpu(bundle, RuntimeOptions(threads=1))
    assert runtime.provider == "CPUExecutionProvider"
    decoding = StepDecoder(runtime, [[5, 6, 3], [5, 3]])
    outputs = decoding.step(np.full((2, 1), BOS), np.zeros((2, 1), np.int64))
    outputs = decoding.step(np.full((2, 2), 5), np.zeros((2, 2), np.int64))
    for name, value in {**decoding.encoded, **outputs}.items():
        assert isinstance(value, ort.OrtValue), name
        assert value.device_name() == "cpu", name
    np.testing.assert_allclose(np.exp(runtime.numpy(outputs["log_probs"])).sum(2), 1.0, atol=1e-5)


def test_every_output_is_bound_to_the_device(bundle, monkeypatch):
    devices = []
    monkeypatch.setattr(ort.IOBinding, "bind_output", lambda self, name, device: devices.append(device))
    runtime = OrtCudaOnCpu(bundle)
    runtime.device = "cuda"
    with pytest.raises(BundleError, match="At least one output"):  # none was bound
        StepDecoder(runtime, [[5, 3]])
    assert devices == ["cuda"] * len(runtime.graphs["encoder"].outputs)


def test_verify_holds(bundle):
    report = check(bundle, OrtCudaOnCpu(bundle), reader.load(bundle))
    assert report.verdict == "holds", str(report)


def test_each_precision_uses_its_target_graphs(bundle):
    with pytest.raises(NotTestedError, match=r"optimize .* --target ort-cuda --precision fp16"):
        OrtCudaOnCpu(bundle, RuntimeOptions(precision="fp16"))
    for precision in ("fp32", "fp16"):
        target = Target("ort-cuda", precision, dict(bundle.manifest.graphs))
        manifest = dataclasses.replace(bundle.manifest, targets={target.name: target})
        runtime = OrtCudaOnCpu(Bundle(bundle.path, manifest, bundle.files()), RuntimeOptions(precision=precision))
        assert runtime.graphs is target.graphs
        assert runtime.precision == precision


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            "[ONNXRuntimeError] : CUDA failure 209: no kernel image is available for execution on the device ; GPU",
            "no kernel image is available for execution on the device; this onnxruntime was not built for this GPU",
        ),
        ("CUDA failure 2: out of memory ; GPU=0", "CUDA failure 2: out of memory; free memory on the GPU"),
        (
            "bfc_arena.cc: Failed to allocate memory for requested buffer of size 8589934592\n",
            "requested buffer of size 8589934592; free memory on the GPU",
        ),
        ("CUBLAS failure 1: not initialized ; GPU=0", "CUBLAS failure 1: not initialized; run: edge-attn doctor"),
    ],
)
def test_gpu_error_is_one_sentence(bundle, monkeypatch, error, message):
    def fail(*_: object) -> None:
        raise RuntimeError(error)

    runtime = OrtCudaOnCpu(bundle)
    monkeypatch.setattr(cuda, "run_bound", fail)
    with pytest.raises(NotTestedError) as caught:
        StepDecoder(runtime, [[5, 3]])
    assert "the GPU does not run the graph 'encoder': " in str(caught.value)
    assert message in str(caught.value)


def test_other_errors_are_not_converted(bundle):
    with pytest.raises(Exception, match="words"):
        OrtCudaOnCpu(bundle).run("encoder", {"words": np.zeros((1, 1), np.int64)})


def test_close_frees_the_sessions(bundle):
    runtime = OrtCudaOnCpu(bundle)
    runtime.close()
    assert not runtime._sessions
