"""The runtime `trt` on the fake TensorRT and CUDA of conftest.py, without a GPU."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from on_a_gpu import open_or_skip, skip_where_absent
from paths import KINDS_FOLDER

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding import batching
from edge_attn.decoding.beam_search import search
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import BundleError, InputError, NotTestedError
from edge_attn.parity import reader
from edge_attn.registry import PRECISIONS
from edge_attn.runtimes.base import open_runtime
from edge_attn.runtimes.ort.cpu import OrtCpu
from edge_attn.runtimes.tasks.translation import Translator
from edge_attn.runtimes.trt import runtime as trt
from edge_attn.runtimes.trt.runtime import Trt, TrtRtx
from edge_attn.runtimes.verification.verify import check

KINDS = sorted(KINDS_FOLDER.glob("*.zip"))


@pytest.mark.parametrize("count", [1, 9, 32])
@pytest.mark.parametrize("beam", [1, 4, 5])
def test_tokens_equal_those_of_the_cpu(runtime, bundle, sources, beam, count):
    reference = OrtCpu(bundle, RuntimeOptions(threads=1))
    config = SearchConfig(beam=beam, n_best=beam, max_length=30)
    order = np.random.default_rng(count).permutation(len(sources))
    for rows in batching.batches(len(sources), count):
        batch = [sources[order[i]] for i in rows]
        actual, expected = (search(either, batch, config, True) for either in (runtime, reference))
        for ours, theirs in zip(actual, expected, strict=True):
            assert [(h.tokens, h.finished) for h in ours] == [(h.tokens, h.finished) for h in theirs]
            for hypothesis, reference_hypothesis in zip(ours, theirs, strict=True):
                assert hypothesis.log_prob == pytest.approx(reference_hypothesis.log_prob, abs=1e-4)
                np.testing.assert_allclose(hypothesis.alignment, reference_hypothesis.alignment, atol=1e-5)


@pytest.mark.parametrize("path", KINDS, ids=lambda path: path.stem)
def test_verify_holds_for_every_attention(jetson, path):
    bundle = jetson.ready(path, src=[3])
    runtime = jetson.open(bundle)
    report = check(bundle, runtime, reader.load(bundle))
    runtime.close()
    assert report.verdict == "holds", str(report)


def test_verify_holds_and_provider_names_the_engine(jetson, runtime, bundle):
    report = check(bundle, runtime, reader.load(bundle))
    assert report.verdict == "holds", str(report)
    assert report.runtime == "trt"
    assert runtime.provider.startswith("tensorrt 10.3.0 on Orin; buffers of 0.")
    assert runtime.provider.endswith("; as CUDA graphs: step; not capturable: encoder")
    assert "cannot capture encoder: operation not permitted" in runtime._launches.enqueued["encoder"]


def test_large_requests_are_split_into_batches(jetson, toy_bundle):
    bundle = jetson.ready(toy_bundle, batch=[1, 8])
    runtime, reference = jetson.open(bundle), reader.load(bundle)
    assert len(reference.sentences) > runtime.max_batch == 8
    report = check(bundle, runtime, reference)
    assert report.verdict == "holds", str(report)
    translator = Translator(runtime, bundle.text(), bundle.manifest.max_source)
    expected = Translator.open(bundle, "ort-cpu", RuntimeOptions(threads=1))
    lines = [line for line in reference.sentences if len(line) < 20] * 2
    texts = [translation.text for translation in translator.translate(lines, beam=2)]
    runtime.close()
    assert texts == [translation.text for translation in expected.translate(lines, beam=2)]


def test_wrong_engine_fails_verification(runtime, bundle):
    engine = runtime._launches._engines["step"]
    session = engine.session

    def run(names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        return [*({**outputs, "log_probs": outputs["log_probs"] * np.float32(1.01)}).values()]

    engine.session = SimpleNamespace(run=run)
    assert check(bundle, runtime, reader.load(bundle)).verdict == "fails"


def test_open_runtime_by_name(jetson, bundle):
    options = RuntimeOptions(cache_dir=jetson.cache)
    for name, provider in (("trt", "tensorrt 10.3.0 on Orin"), ("trt-rtx", "tensorrt-rtx 1.7.1 on Orin")):
        opened = open_runtime(bundle, name, options)
        assert (opened.name, opened.precision, opened.provider.partition(";")[0]) == (name, "fp32", provider)
        opened.close()


@pytest.mark.parametrize(
    ("count", "length", "beam", "message"),
    [
        (33, 3, 2, "up to 32 sentences of up to 20 tokens with a beam of up to 5, got 33 of 3 with a beam of 1"),
        (2, 21, 2, "got 2 of 21 with a beam of 1"),
        (3, 4, 6, "got 3 of 4 with a beam of 6"),
    ],
)
def test_too_large_request_is_rejected(runtime, count, length, beam, message):
    with pytest.raises(InputError, match=message):
        search(runtime, [[5] * length] * count, SearchConfig(beam=beam, max_length=5))


def test_max_batch_is_the_largest_bucket(runtime):
    assert runtime.max_batch == 32


MISMATCHED_INPUTS = [
    ({"source": np.zeros((2, 3), np.int32)}, r"encoder: expected source int64 \(batch, src\), got int32"),
    ({"source": np.zeros((2, 3, 1), np.int64)}, r"expected source int64 \(batch, src\) with .*\(2, 3, 1\)"),
    ({"source": np.zeros((3, 3), np.int64)}, r"expected source_length .* with {'batch': 3.*got the shape \(2,\)"),
    ({"source": np.zeros((2, 0), np.int64)}, r"got the shape \(2, 0\)"),
]


@pytest.mark.parametrize(("changed", "message"), MISMATCHED_INPUTS)
def test_mismatched_inputs_are_rejected(runtime, changed, message):
    inputs = {"source": np.zeros((2, 3), np.int64), "source_length": np.full(2, 3), **changed}
    with pytest.raises(InputError, match=message):
        runtime.run("encoder", inputs)


def test_missing_target_names_the_optimize_command(jetson, toy_bundle):
    with pytest.raises(NotTestedError, match=r"run: edge-attn optimize .* --target trt --precision fp16"):
        jetson.open(Bundle.open(toy_bundle), precision="fp16")


def test_missing_tensorrt_or_cuda_is_not_tested(monkeypatch, bundle, jetson):
    monkeypatch.undo()
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("trt", "trt-rtx"):
        with pytest.raises(NotTestedError, match="does not load here"):
            open_runtime(bundle, name)
    monkeypatch.setattr(trt, "load_tensorrt", jetson.tensorrt)
    monkeypatch.setattr("edge_attn.runtimes.trt.cudart.libcudart_paths", lambda: iter(()))
    with pytest.raises(NotTestedError, match="CUDA is not here"):
        Trt(bundle)


def test_missing_tensorrt_exits_with_code_3(monkeypatch, edge_attn_cli, toy_bundle, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    lines = tmp_path / "lines"
    lines.write_text("the cat sees a dog\n")
    edge_attn_cli("verify", toy_bundle, "--runtime", "trt", code=3, error="TensorRT does not load here")
    edge_attn_cli("translate", toy_bundle, "--input", lines, "--runtime", "trt", code=3, error="TensorRT does not load")


def test_engines_are_built_once(jetson, bundle, capsys):
    jetson.open(bundle).close()
    assert jetson.built == ["graphs/encoder.onnx", "graphs/step.onnx"]
    assert "building the engine" in capsys.readouterr().err
    jetson.open(bundle).close()
    assert len(jetson.built) == 2
    assert capsys.readouterr().err == ""
    jetson.cuda.name = "NVIDIA H200"
    jetson.open(bundle).close()
    assert len(jetson.built) == 4
    assert re.search("the GPU was Orin.*, is NVIDIA H200", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("min_version", "older", "newer"),
    [("10.13.2", (10, 3, 0), (10, 13, 2, 6)), ("10.4", (10, 3, 0), (10, 4)), ("10.3.1", (10, 3, 0), (10, 3, 1))],
)
def test_graphs_for_newer_tensorrt_name_the_optimize_command(jetson, bundle, min_version, older, newer):
    changed = with_min_version(bundle, min_version)
    message = rf"{re.escape(min_version)} or newer, got tensorrt 10\.3\.0; run: .*--min-version 10\.3 --force"
    jetson.version = older
    with pytest.raises(NotTestedError, match=message):
        jetson.open(changed)
    assert jetson.built == []
    jetson.version = newer
    jetson.open(changed).close()


def test_rtx_min_version_is_its_api_level(jetson, bundle):
    TrtRtx(with_min_version(bundle, "11.0.0"), RuntimeOptions(cache_dir=jetson.cache)).close()
    with pytest.raises(NotTestedError, match=r"TensorRT 11\.1 or newer, got tensorrt-rtx 1\.7\.1"):
        TrtRtx(with_min_version(bundle, "11.1"), RuntimeOptions(cache_dir=jetson.cache))


def with_min_version(bundle: Bundle, version: str) -> Bundle:
    target = bundle.manifest.targets["trt-fp32"]
    target = dataclasses.replace(target, settings={**target.settings, "min_version": version})
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, targets={target.name: target}), bundle.files())


def test_axis_without_bucket_is_rejected(jetson, bundle):
    graphs = dict(bundle.manifest.graphs)
    source, *rest = graphs["encoder"].inputs
    graphs["encoder"] = dataclasses.replace(
        graphs["encoder"], inputs=(dataclasses.replace(source, shape=("batch", "width")), *rest)
    )
    target = dataclasses.replace(bundle.manifest.targets["trt-fp32"], graphs=graphs)
    changed = Bundle(bundle.path, dataclasses.replace(bundle.manifest, targets={target.name: target}), bundle.files())
    with pytest.raises(BundleError, match="the axis 'width'"):
        jetson.open(changed)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_optimize_builds_the_engine_that_the_runtime_uses(jetson, toy_bundle, tmp_path, precision):
    pytest.importorskip("onnx", reason="needs torch or the extra optimize: onnx writes the target's graphs")
    path = Path(shutil.copy(toy_bundle, tmp_path / "toy.zip"))
    profiles = tmp_path / "profiles.toml"
    profiles.write_text("[buckets]\nbatch = [1, 32]\nsrc = [8]\n")
    lines: list[str] = []
    optimize = importlib.import_module("edge_attn.runtimes.optimize.optimize").optimize
    options = {"profiles": profiles, "build": True, "cache_dir": jetson.cache}
    assert optimize(path, "trt", precision, log=lines.append, **options) == 0, lines
    assert lines[-1].startswith(f"{path} on trt (tensorrt 10.3.0 on Orin")
    assert jetson.built == [f"targets/trt-{precision}/{graph}.onnx" for graph in ("encoder", "step")]
    runtime = jetson.open(Bundle.open(path), precision=precision)
    assert runtime.precision == precision
    assert len(jetson.built) == 2
    runtime.close()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["trt", "trt-rtx"])
def test_verify_holds_on_a_gpu(needs_gpu, toy_bundle, tmp_path, name, precision):
    skip_where_absent(name)
    pytest.importorskip("onnx", reason="needs torch or the extra optimize: onnx writes the target's graphs")
    optimize = importlib.import_module("edge_attn.runtimes.optimize.optimize").optimize
    path = Path(shutil.copy(toy_bundle, tmp_path / "toy.zip"))
    assert optimize(path, "trt", precision, log=lambda line: None) == 0
    opened = Bundle.open(path)
    runtime = open_or_skip(opened, name, RuntimeOptions(precision=precision, cache_dir=tmp_path / "cache"))
    report = check(opened, runtime, reader.load(opened))
    print(runtime.provider, runtime._launches.enqueued)
    runtime.close()
    assert report.verdict == "holds", str(report)
