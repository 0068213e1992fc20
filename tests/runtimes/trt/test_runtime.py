"""The runtime `trt`, on a small TensorRT and CUDA over host memory (conftest.py); no GPU takes part."""

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
from edge_attn.parity import golden
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
def test_the_same_tokens_as_on_the_cpu(runtime, bundle, sources, beam, count):
    reference = OrtCpu(bundle, RuntimeOptions(threads=1))
    config = SearchConfig(beam=beam, n_best=beam, max_length=30)
    order = np.random.default_rng(count).permutation(len(sources))
    for rows in batching.batches(len(sources), count):
        some = [sources[order[i]] for i in rows]
        found, expected = search(runtime, some, config, True), search(reference, some, config, True)
        for ours, theirs in zip(found, expected, strict=True):
            assert [(h.tokens, h.finished) for h in ours] == [(h.tokens, h.finished) for h in theirs]
            for one, other in zip(ours, theirs, strict=True):
                assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
                np.testing.assert_allclose(one.alignment, other.alignment, atol=1e-5)


@pytest.mark.parametrize("path", KINDS, ids=lambda path: path.stem)
def test_verify_holds_for_every_kind_of_model(jetson, path):
    bundle = jetson.ready(path, src=[3])
    runtime = jetson.open(bundle)
    report = check(bundle, runtime, golden.load(bundle.read))
    runtime.close()
    assert report.verdict == "holds", str(report)


def test_verify_holds_and_names_what_ran(jetson, runtime, bundle):
    report = check(bundle, runtime, golden.load(bundle.read))
    assert report.verdict == "holds", str(report)
    assert report.runtime == "trt"
    assert runtime.provider.startswith("tensorrt 10.3.0 on Orin; buffers of 0.")
    assert runtime.provider.endswith("; as CUDA graphs: step; not capturable: encoder")
    assert "cannot capture encoder: operation not permitted" in runtime._launches.enqueued["encoder"]


def test_more_sentences_than_the_largest_bucket_are_taken_in_turns(jetson, toy_bundle):
    bundle = jetson.ready(toy_bundle, batch=[1, 8])
    runtime, said = jetson.open(bundle), golden.load(bundle.read)
    assert len(said.sentences) > runtime.max_batch == 8
    report = check(bundle, runtime, said)
    assert report.verdict == "holds", str(report)
    translator = Translator(runtime, bundle.text(), bundle.manifest.max_source)
    expected = Translator.open(bundle, "ort-cpu", RuntimeOptions(threads=1))
    lines = [line for line in said.sentences if len(line) < 20] * 2
    found = [made.text for made in translator.translate(lines, beam=2)]
    runtime.close()
    assert found == [made.text for made in expected.translate(lines, beam=2)]


def test_verify_sees_a_wrong_engine(runtime, bundle):
    engine = runtime._launches._engines["step"]
    session = engine.session

    def run(names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = dict(zip(names, session.run(names, inputs), strict=True))
        return [*({**found, "log_probs": found["log_probs"] * np.float32(1.01)}).values()]

    engine.session = SimpleNamespace(run=run)
    assert check(bundle, runtime, golden.load(bundle.read)).verdict == "fails"


def test_by_its_name(jetson, bundle):
    options = RuntimeOptions(cache_dir=jetson.cache)
    for name, said in (("trt", "tensorrt 10.3.0 on Orin"), ("trt-rtx", "tensorrt-rtx 1.7.1 on Orin")):
        made = open_runtime(bundle, name, options)
        assert (made.name, made.precision, made.provider.partition(";")[0]) == (name, "fp32", said)
        made.close()


@pytest.mark.parametrize(
    ("count", "length", "beam", "said"),
    [
        (33, 3, 2, "up to 32 sentences of up to 20 tokens with a beam of up to 5, got 33 of 3 with a beam of 1"),
        (2, 21, 2, "got 2 of 21 with a beam of 1"),
        (3, 4, 6, "got 3 of 4 with a beam of 6"),
    ],
)
def test_a_request_that_no_bucket_covers(runtime, count, length, beam, said):
    with pytest.raises(InputError, match=said):
        search(runtime, [[5] * length] * count, SearchConfig(beam=beam, max_length=5))


def test_as_many_sentences_as_it_takes_are_known(runtime):
    assert runtime.max_batch == 32


MISFITS = [
    ({"source": np.zeros((2, 3), np.int32)}, r"encoder: expected source int64 \(batch, src\), got int32"),
    ({"source": np.zeros((2, 3, 1), np.int64)}, r"expected source int64 \(batch, src\) with .*\(2, 3, 1\)"),
    ({"source": np.zeros((3, 3), np.int64)}, r"expected source_length .* with {'batch': 3.*found the shape \(2,\)"),
    ({"source": np.zeros((2, 0), np.int64)}, r"got the shape \(2, 0\)"),
]


@pytest.mark.parametrize(("changed", "said"), MISFITS)
def test_inputs_that_do_not_fit(runtime, changed, said):
    inputs = {"source": np.zeros((2, 3), np.int64), "source_length": np.full(2, 3), **changed}
    with pytest.raises(InputError, match=said):
        runtime.run("encoder", inputs)


def test_no_target_is_the_command_that_makes_it(jetson, toy_bundle):
    with pytest.raises(NotTestedError, match=r"run: edge-attn optimize .* --target trt --precision fp16"):
        jetson.open(Bundle.open(toy_bundle), precision="fp16")


def test_without_tensorrt_or_cuda_it_is_not_tested(monkeypatch, bundle, jetson):
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


def test_on_the_command_line(monkeypatch, edge_attn_cli, toy_bundle, tmp_path):
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
    ("oldest", "found", "newer"),
    [("10.13.2", (10, 3, 0), (10, 13, 2, 6)), ("10.4", (10, 3, 0), (10, 4)), ("10.3.1", (10, 3, 0), (10, 3, 1))],
)
def test_graphs_for_newer_versions_are_refused_with_the_command_that_makes_older_ones(
    jetson, bundle, oldest, found, newer
):
    changed = with_oldest(bundle, oldest)
    said = rf"{re.escape(oldest)} or newer, got tensorrt 10\.3\.0; run: .*--min-version 10\.3 --force"
    jetson.version = found
    with pytest.raises(NotTestedError, match=said):
        jetson.open(changed)
    assert jetson.built == []
    jetson.version = newer
    jetson.open(changed).close()


def test_tensorrt_rtx_reads_what_the_version_of_its_interface_reads(jetson, bundle):
    TrtRtx(with_oldest(bundle, "11.0.0"), RuntimeOptions(cache_dir=jetson.cache)).close()
    with pytest.raises(NotTestedError, match=r"TensorRT 11\.1 or newer, got tensorrt-rtx 1\.7\.1"):
        TrtRtx(with_oldest(bundle, "11.1"), RuntimeOptions(cache_dir=jetson.cache))


def with_oldest(bundle: Bundle, version: str) -> Bundle:
    target = bundle.manifest.targets["trt-fp32"]
    target = dataclasses.replace(target, settings={**target.settings, "min_version": version})
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, targets={target.name: target}), bundle.files())


def test_an_axis_that_has_no_bucket(jetson, bundle):
    graphs = dict(bundle.manifest.graphs)
    first, *others = graphs["encoder"].inputs
    graphs["encoder"] = dataclasses.replace(
        graphs["encoder"], inputs=(dataclasses.replace(first, shape=("batch", "width")), *others)
    )
    target = dataclasses.replace(bundle.manifest.targets["trt-fp32"], graphs=graphs)
    changed = Bundle(bundle.path, dataclasses.replace(bundle.manifest, targets={target.name: target}), bundle.files())
    with pytest.raises(BundleError, match="the axis 'width'"):
        jetson.open(changed)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_optimize_builds_and_verifies_on_the_engine_that_translates(jetson, toy_bundle, tmp_path, precision):
    pytest.importorskip("onnx", reason="torch is not installed: a device needs none")
    path = Path(shutil.copy(toy_bundle, tmp_path / "toy.zip"))
    profiles = tmp_path / "profiles.toml"
    profiles.write_text("[buckets]\nbatch = [1, 32]\nsrc = [8]\n")
    said: list[str] = []
    optimize = importlib.import_module("edge_attn.runtimes.optimize.optimize").optimize
    options = {"profiles": profiles, "build": True, "cache_dir": jetson.cache}
    assert optimize(path, "trt", precision, say=said.append, **options) == 0, said
    assert said[-1].startswith(f"{path} on trt (tensorrt 10.3.0 on Orin")
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
    pytest.importorskip("onnx", reason="needs torch or the extra optimize: onnx makes the target's graphs")
    optimize = importlib.import_module("edge_attn.runtimes.optimize.optimize").optimize
    path = Path(shutil.copy(toy_bundle, tmp_path / "toy.zip"))
    assert optimize(path, "trt", precision, say=lambda sentence: None) == 0
    opened = Bundle.open(path)
    runtime = open_or_skip(opened, name, RuntimeOptions(precision=precision, cache_dir=tmp_path / "cache"))
    report = check(opened, runtime, golden.load(opened.read))
    print(runtime.provider, runtime._launches.enqueued)
    runtime.close()
    assert report.verdict == "holds", str(report)
