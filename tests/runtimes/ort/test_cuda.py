"""The CUDA provider: what is said where it is not there, and the same tokens where something stands in its place.

No GPU takes part: the CPU stands in for it where the code past the provider runs. tests/gpu holds the rest.
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
from edge_attn.parity import golden
from edge_attn.runtimes.base import open_runtime
from edge_attn.runtimes.ort import cuda as ort_cuda
from edge_attn.runtimes.ort.cpu import OrtCpu, onnxruntime_packages
from edge_attn.runtimes.ort.cuda import OrtCuda, provider_fault
from edge_attn.runtimes.verification.verify import check
from edge_attn.text.tokenizers import BOS

FALLBACK = RuntimeOptions(allow_fallback=True)
CUDA = "CUDAExecutionProvider"


class OnTheCpu(OrtCuda):
    """Everything that runs on a GPU, with the CPU in its place."""

    device = "cpu"
    wanted = "CPUExecutionProvider"
    settings = {}  # noqa: RUF012


@pytest.fixture
def bundle(toy_bundle) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture
def no_cuda(monkeypatch):
    """ONNX Runtime as it is without its CUDA provider, whatever is installed here."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def installed(monkeypatch, *names: str) -> None:
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"onnxruntime": list(names)})


# ---- the provider is not there


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(
    ("packages", "said"),
    [
        ([], "has no CUDAExecutionProvider; run: pip install 'edge-attn[gpu]'; or run on the CPU: --allow-fallback"),
        (["onnxruntime"], "; run: pip uninstall -y onnxruntime && pip install 'edge-attn[gpu]'; or"),
        (
            ["onnxruntime-gpu", "onnxruntime", "onnxruntime"],
            "onnxruntime and onnxruntime-gpu overwrite each other, so remove both; "
            "run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'edge-attn[gpu]'; or",
        ),
    ],
)
def test_without_the_provider_the_next_command_is_said(bundle, monkeypatch, packages, said):
    installed(monkeypatch, *packages)
    with pytest.raises(NotTestedError) as caught:
        open_runtime(bundle, "ort-cuda")
    assert caught.value.exit_code == 3
    assert said in str(caught.value)


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("packages", [["onnxruntime"], ["onnxruntime", "onnxruntime-gpu"]])
def test_on_a_jetson_no_package_of_the_index_is_advised(monkeypatch, packages):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    installed(monkeypatch, *packages)
    fault = provider_fault(CUDA)
    assert "use --runtime trt, or an onnxruntime that was built for this board" in fault
    assert "pip install" not in fault
    assert ("overwrite each other" in fault) == (len(packages) > 1)


def test_the_packages_are_those_that_are_installed():
    assert onnxruntime_packages()
    assert all("onnxruntime" in name or name.startswith("ort") for name in onnxruntime_packages())


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "libcublasLt.so.13: cannot open shared object file: No such file or directory",
            "does not load: libcublasLt.so.13: cannot open shared object file: No such file or directory; "
            "run: pip install 'onnxruntime-gpu[cuda,cudnn]'; or",
        ),
        ("libcuda.so.1: cannot open shared object file", "no GPU, or no driver for it; or run on the CPU"),
    ],
)
def test_a_library_that_does_not_load_is_named(bundle, monkeypatch, tmp_path, message, said):
    """onnxruntime-gpu where a library of CUDA, or the driver, is missing: the loader's sentence, before any session."""

    def refuse(path: str, mode: int = 0) -> None:
        if "providers_cuda" in path:
            raise OSError(message)

    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").touch()
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    monkeypatch.setattr(ort_cuda, "open_session", None)
    with pytest.raises(NotTestedError) as caught:
        OrtCuda(bundle)
    assert said in str(caught.value)


NO_DRIVER = (
    "/src/cuda_call.cc:154 std::conditional_t<THRW, void> CUDA failure 35: CUDA driver version is insufficient for "
    "CUDA runtime version ; GPU=-1 ; hostname=device ; file=/src/cuda_execution_provider.cc ; line=355 ; expr=x();"
)


def refuses(message: str):
    """Instead of open_session: what ONNX Runtime raises while the provider is made."""

    def open_session(bundle, spec, settings, providers):
        if providers[0][0] == "CPUExecutionProvider":
            return ort.InferenceSession(bundle.read(spec.file), settings, providers=providers)
        raise BundleError("not a graph that loads") from RuntimeError(message)

    return open_session


@pytest.fixture
def cuda_seems_there(monkeypatch):
    """Nothing speaks against the provider until a session asks for it."""
    monkeypatch.setattr(ort_cuda, "provider_fault", lambda provider: None)


@pytest.mark.usefixtures("cuda_seems_there")
def test_a_provider_that_fails_when_it_is_made_is_not_a_bad_bundle(bundle, monkeypatch):
    monkeypatch.setattr(ort_cuda, "open_session", refuses(NO_DRIVER))
    with pytest.raises(NotTestedError) as caught:
        OrtCuda(bundle)
    said = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version; run: edge-attn doctor; or"
    assert said in str(caught.value)
    assert OrtCuda(bundle, FALLBACK).provider == f"CPUExecutionProvider in place of {CUDA}"


@pytest.mark.usefixtures("cuda_seems_there")
@pytest.mark.parametrize("options", [RuntimeOptions(), FALLBACK])
def test_a_bad_bundle_is_not_a_missing_provider(bundle, monkeypatch, options):
    monkeypatch.setattr(ort_cuda, "open_session", refuses("Protobuf parsing failed"))
    with pytest.raises(BundleError):
        OrtCuda(bundle, options)


@pytest.mark.usefixtures("cuda_seems_there")
def test_a_provider_that_onnx_runtime_leaves_out_without_an_error_is_missed(bundle, monkeypatch):
    """What it does when the provider's library does not load: a line on standard error, and the CPU."""
    real = ort_cuda.open_session
    monkeypatch.setattr(
        ort_cuda, "open_session", lambda b, s, settings, _: real(b, s, settings, ["CPUExecutionProvider"])
    )
    with pytest.raises(NotTestedError, match=f"left {CUDA} out; run: edge-attn doctor"):
        OrtCuda(bundle)


@pytest.mark.parametrize("runtime", [OrtCpu, OrtCuda])
def test_a_module_that_lost_its_files_is_named(bundle, monkeypatch, runtime):
    """pip leaves it so when it removes one of two packages of onnxruntime; found by doing it."""
    installed(monkeypatch, "onnxruntime-gpu")
    for name in ("InferenceSession", "SessionOptions", "get_available_providers"):
        monkeypatch.delattr(ort, name)
    with pytest.raises(NotTestedError, match="pip install --force-reinstall --no-deps onnxruntime-gpu"):
        runtime(bundle)


def test_without_onnxruntime_the_extra_is_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "edge_attn.runtimes.ort.cuda")
    with pytest.raises(MissingExtraError, match=r"onnxruntime is not installed; run: pip install 'edge-attn\[gpu\]'"):
        importlib.import_module("edge_attn.runtimes.ort.cuda")


@pytest.mark.usefixtures("no_cuda")
def test_the_command_line_says_it_in_one_sentence(edge_attn_cli, toy_bundle):
    edge_attn_cli("verify", toy_bundle, "--runtime", "ort-cuda", code=3, error="ort-cuda does not run here")


# ---- with something in its place


def tokens(runtime, sources) -> list[list[tuple[int, ...]]]:
    found = search(runtime, sources, SearchConfig(beam=4, n_best=4))
    return [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in found]


@pytest.mark.usefixtures("no_cuda")
def test_a_fallback_that_is_allowed_says_the_same_and_says_so(bundle):
    runtime = open_runtime(bundle, "ort-cuda", FALLBACK)
    assert runtime.name == "ort-cuda"
    assert runtime.provider == f"CPUExecutionProvider in place of {CUDA}"
    sources = golden.load(bundle.read).sources[:16]
    assert tokens(runtime, sources) == tokens(OrtCpu(bundle), sources)


def test_what_runs_on_the_device_stays_there_until_it_is_asked_for(bundle):
    runtime = OnTheCpu(bundle, RuntimeOptions(threads=1))
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
    runtime = OnTheCpu(bundle)
    runtime.device = "cuda"
    with pytest.raises(RuntimeError, match="At least one output"):  # none was bound
        StepDecoder(runtime, [[5, 3]])
    assert devices == ["cuda"] * len(runtime.graphs["encoder"].outputs)


def test_it_holds_what_verify_asks(bundle):
    report = check(bundle, OnTheCpu(bundle), golden.load(bundle.read))
    assert report.verdict == "holds", str(report)


def test_each_precision_runs_the_targets_own_graphs(bundle):
    with pytest.raises(NotTestedError, match=r"optimize .* --target ort-cuda --precision fp16"):
        OnTheCpu(bundle, RuntimeOptions(precision="fp16"))
    for precision in ("fp32", "fp16"):
        made = Target("ort-cuda", precision, dict(bundle.manifest.graphs))
        manifest = dataclasses.replace(bundle.manifest, targets={made.name: made})
        runtime = OnTheCpu(Bundle(bundle.path, manifest, bundle.files()), RuntimeOptions(precision=precision))
        assert runtime.graphs is made.graphs
        assert runtime.precision == precision


@pytest.mark.parametrize(
    ("message", "said"),
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
def test_a_gpu_that_refuses_is_one_sentence(bundle, monkeypatch, message, said):
    def fail(*_: object) -> None:
        raise RuntimeError(message)

    runtime = OnTheCpu(bundle)
    monkeypatch.setattr(ort_cuda, "run_bound", fail)
    with pytest.raises(NotTestedError) as caught:
        StepDecoder(runtime, [[5, 3]])
    assert "the GPU does not run the graph 'encoder': " in str(caught.value)
    assert said in str(caught.value)


def test_a_fault_of_ours_stays_one(bundle):
    with pytest.raises(Exception, match="words"):
        OnTheCpu(bundle).run("encoder", {"words": np.zeros((1, 1), np.int64)})


def test_closing_frees_the_sessions(bundle):
    runtime = OnTheCpu(bundle)
    runtime.close()
    assert not runtime._sessions
