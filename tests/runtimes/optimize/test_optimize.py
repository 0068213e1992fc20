"""`edge-attn optimize`: real graphs of real bundles, verified before they are written."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from paths import KINDS_FOLDER

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

from optimize_cases import change_graph, run_optimize

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import TASK_NAMES_FORMAT
from edge_attn.bundle.writer import write_bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import NotTestedError
from edge_attn.ops import DOMAIN
from edge_attn.parity import reader
from edge_attn.registry import PRECISIONS, TARGETS, resolve
from edge_attn.runtimes.commands.inspect import inspect
from edge_attn.runtimes.onnx_graph import Constants, load, types
from edge_attn.runtimes.optimize import targets as recipes
from edge_attn.runtimes.optimize.calibration import activation_ranges, log_probs, with_graphs
from edge_attn.runtimes.optimize.inline import inline

KINDS = {path.stem: path for path in sorted(KINDS_FOLDER.glob("*.zip"))}
PAIRS = [(name, precision) for name in TARGETS for precision in resolve("target", TARGETS, name).precisions]
ONE = RuntimeOptions(threads=1)


@pytest.fixture(params=["zip", "folder"])
def toy(request, toy_bundle, tmp_path) -> Path:
    """Writable copy of the toy bundle; the suffix does not tell a zip from a folder."""
    if request.param == "zip":
        return Path(shutil.copy(toy_bundle, tmp_path / "toy.bin"))
    opened = Bundle.open(toy_bundle)
    write_bundle(tmp_path / "toy", opened.manifest, opened.files())
    return (tmp_path / "toy").rename(tmp_path / "toy.zip")


def ready(path: Path, name: str) -> dict[str, onnx.ModelProto]:
    bundle = Bundle.open(path)
    graphs = bundle.manifest.targets[name].graphs
    return {graph: load(bundle.read(spec.file), graph) for graph, spec in graphs.items()}


# ---- what is written


def test_engine_target_records_torch_module_of_each_node(toy_bundle, tmp_path):
    copy = Path(shutil.copy(toy_bundle, tmp_path / "toy.zip"))
    run_optimize(copy, "trt", "fp32")
    target = Bundle.open(copy).manifest.targets["trt-fp32"]
    assert set(target.settings["modules"]) == {spec.file for spec in target.graphs.values()}
    for graph, model in ready(copy, "trt-fp32").items():
        modules = target.settings["modules"][target.graphs[graph].file]
        assert modules["node_embedding"] == ("model.encoder.embedding" if graph == "encoder" else "model.embedding")
        assert set(modules) <= {node.name for node in model.graph.node}
    assert "node_embedding" not in str(inspect(copy))


@pytest.mark.parametrize(("target", "precision"), PAIRS)
def test_target_is_written_and_the_rest_stays(toy, toy_bundle, target, precision):
    [line] = [line for line in run_optimize(toy, target, precision) if "MB" in line]
    before, after = Bundle.open(toy_bundle), Bundle.open(toy)
    written = after.target(target, precision)
    assert after.manifest.format == TASK_NAMES_FORMAT
    assert {name: after.read(name) for name in before.files()} == before.files()
    assert dataclasses.replace(after.manifest, format=1, targets={}, files=before.manifest.files) == before.manifest
    assert (written.target, written.precision, written.name) == (target, precision, f"{target}-{precision}")
    assert written.verification["levels"] == {"L1": "holds", "L2": "holds", "L3": "holds", "L5": "holds"}
    assert written.verification["found"]["L2 top1"] <= 0.01  # codespell:ignore found
    assert (written.verification.get("engine") == "not tested") is (target == "trt")
    assert ("the engine is not tested" in line) is (target == "trt")
    for name, spec in written.graphs.items():
        portable = after.manifest.graphs[name]
        assert (spec.inputs, spec.outputs) == (portable.inputs, portable.outputs)
        assert spec.file == f"targets/{target}-{precision}/{name}.onnx"
        model = load(after.read(spec.file), name)
        onnx.checker.check_model(model, full_check=True)
        assert not model.functions
        assert DOMAIN not in {node.domain for node in model.graph.node}
    assert [p.name for p in toy.parent.iterdir()] == [toy.name]
    assert toy.is_file() is (toy.suffix == ".bin")


MAX_DIFFERENCE = {"fp32": 1e-4, "fp16": 0.05, "int8": 2.0}
"""Largest difference of a log-probability from that of the portable graphs."""


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_precision_matches_the_portable_graphs(tmp_path, kind, precision):
    path = Path(shutil.copy(KINDS[kind], tmp_path))
    run_optimize(path, "trt", precision)
    bundle = Bundle.open(path)
    data = reader.load(bundle)
    portable = {name: load(bundle.read(spec.file), name) for name, spec in bundle.manifest.graphs.items()}
    actual = log_probs(bundle, ready(path, f"trt-{precision}"), data, ONE)
    np.testing.assert_allclose(actual, log_probs(bundle, portable, data, ONE), atol=MAX_DIFFERENCE[precision], rtol=0)


@pytest.mark.parametrize(("target", "kind"), [("trt", np.float32), ("ort-cuda", np.float16)])
def test_recurrence_with_lengths_is_fp32_where_types_are_strong(copied, target, kind):
    run_optimize(copied, target, "fp16")
    model = ready(copied, f"{target}-fp16")["encoder"]
    [cell] = [node for node in model.graph.node if node.op_type == "GRU"]
    actual = types(model)[cell.output[0]]
    assert onnx.helper.tensor_dtype_to_np_dtype(actual) == kind


def test_same_bundle_gives_the_same_bytes(copied, toy_bundle, tmp_path):
    other = Path(shutil.copy(toy_bundle, tmp_path / "other.zip"))
    for path in (copied, other):
        run_optimize(path, "trt", "int8")
    assert copied.read_bytes() == other.read_bytes()


def test_existing_target_is_replaced_only_by_force(edge_attn_cli, copied):
    command = ("optimize", copied, "--target", "ort-cuda", "--precision", "fp16", "--threads", 1)
    edge_attn_cli(*command)
    before = copied.read_bytes()
    edge_attn_cli(*command, code=4, error=f"{copied} already contains ort-cuda-fp16; give --force to build it again")
    edge_attn_cli("optimize", copied, "--target", "trt", "--threads", 1)
    edge_attn_cli(*command, "--force")
    assert set(Bundle.open(copied).manifest.targets) == {"ort-cuda-fp16", "trt-fp32"}
    assert copied.read_bytes() != before
    text = edge_attn_cli("inspect", copied).stdout
    assert "target ort-cuda-fp16: 0.1 MB, L1 holds, L2 holds, L3 holds, L5 holds (CPUExecutionProvider)" in text
    assert "(CPUExecutionProvider; the engine: not tested)" in text
    edge_attn_cli("verify", copied, "--threads", 1)


def test_options_are_recorded(copied, tmp_path):
    lines, table = tmp_path / "lines.txt", tmp_path / "build.toml"
    lines.write_text("the red king\na small cat sees a dog\n", encoding="utf-8")
    table.write_text("workspace_mb = 64\n[buckets]\nbatch = [1]\nsrc = [8]\nbeam = 2\n", encoding="utf-8")
    options = {"min_version": "10.13.2", "calibration": lines, "profiles": table, "max_build_minutes": 3.0}
    run_optimize(copied, "trt", "int8", **options)
    settings = Bundle.open(copied).manifest.targets["trt-int8"].settings
    assert settings["min_version"] == "10.13.2"
    assert settings["calibration"]["sentences"] == 2
    assert settings["calibration"]["from"] == "lines.txt"
    assert settings["build"]["buckets"] == {"batch": [1], "src": [8], "beam": 2}
    assert (settings["build"]["workspace_mb"], settings["build"]["max_build_minutes"]) == (64, 3.0)
    assert settings["quantized"]["step"]


def test_ranges_are_the_largest_magnitudes(toy_bundle):
    bundle = Bundle.open(toy_bundle)
    models = {name: inline(load(bundle.read(spec.file), name)) for name, spec in bundle.manifest.graphs.items()}
    tensors = {"encoder": ["memory.values"], "step": ["embedding"]}
    sentences = ["a cat", "the red king"]
    few, many = (activation_ranges(bundle, models, tensors, sentences[:count], ONE) for count in (1, 2))
    assert 0 < few["encoder"]["memory.values"] <= many["encoder"]["memory.values"] <= 1.0
    table = next(t for t in models["step"].graph.initializer if t.name.startswith("model.embedding"))
    assert many["step"]["embedding"] <= np.abs(onnx.numpy_helper.to_array(table)).max()


@pytest.mark.parametrize("linked", [False, True])
def test_folder_is_written_to_by_another_name(toy_bundle, tmp_path, monkeypatch, linked):
    opened = Bundle.open(toy_bundle)
    write_bundle(tmp_path / "toy", opened.manifest, opened.files())
    (tmp_path / "link").symlink_to(tmp_path / "toy")
    monkeypatch.chdir(tmp_path / "toy")
    lines = run_optimize(tmp_path / "link" if linked else Path(), "trt", "fp32")
    assert f"the current folder was replaced; run: cd {tmp_path / 'toy'}" in lines
    assert "trt-fp32" in Bundle.open(tmp_path / "toy").manifest.targets
    assert (tmp_path / "link").is_symlink()
    assert {p.name for p in tmp_path.iterdir()} == {"toy", "link"}


@pytest.mark.parametrize(("precision", "expected"), [("fp32", {"L2.log_prob": 1e-9}), ("fp16", {})])
def test_stricter_bounds_apply_to_their_precision_only(toy_bundle, precision, expected):
    bundle = Bundle.open(toy_bundle)
    manifest = dataclasses.replace(bundle.manifest, tolerances={"L2.log_prob": 1e-9})
    models = {name: load(bundle.read(spec.file), name) for name, spec in manifest.graphs.items()}
    assert with_graphs(Bundle(bundle.path, manifest, bundle.files()), models, precision).manifest.tolerances == expected


def test_neither_torch_nor_the_exporter_is_needed(run_edge_attn, copied):
    absent = ("torch", "onnxscript", "onnx_ir", "safetensors", "sacrebleu")
    done = run_edge_attn("optimize", copied, "--target", "trt", "--precision", "int8", "--threads", 1, absent=absent)
    assert done.returncode == 0, done.stderr
    assert "trt-int8" in Bundle.open(copied).manifest.targets


def test_without_onnx_the_extra_is_named(run_edge_attn, copied):
    done = run_edge_attn("optimize", copied, "--target", "trt", absent=("onnx",))
    assert done.returncode == 3
    assert b"pip install 'edge-attn[optimize]'" in done.stderr


# ---- what stays fp32


def overflowing(model: onnx.ModelProto) -> None:
    """Multiply the cell's product by 2 ** 20 and divide it again: the same in fp32, an overflow in fp16."""
    node = next(n for n in model.graph.node if n.op_type == "MatMul" and n.input[0] == "cat")
    weight = Constants(model).get(node.input[1])
    assert weight is not None
    for name, value in (("big.weight", weight * 2**20), ("big.shrink", np.float32(2.0**-20))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.float32), name))
    at = list(model.graph.node).index(node)
    model.graph.node.insert(at + 1, onnx.helper.make_node("Mul", ["big.product", "big.shrink"], [node.output[0]]))
    node.input[1], node.output[0] = "big.weight", "big.product"


def test_node_that_overflows_in_fp16_becomes_an_island(copied):
    lines = run_optimize(change_graph(copied, "step", overflowing), "trt", "fp16")
    settings = Bundle.open(copied).manifest.targets["trt-fp16"].settings
    assert "big.product" in settings["fp32_islands"]["step"]
    assert len(settings["fp32_islands"]["step"]) <= 3
    assert any("nodes in fp32" in line for line in lines)
    model = ready(copied, "trt-fp16")["step"]
    assert "big.weight" in {tensor.name for tensor in model.graph.initializer}
    assert sum("half" in name for node in model.graph.node for name in node.output) > 10


def test_product_with_wrong_scale_stays_fp32(copied, monkeypatch):
    def wrong(bundle, models, tensors, *rest):
        ranges = activation_ranges(bundle, models, tensors, *rest)
        ranges["step"]["tanh_1"] /= 1000
        return ranges

    monkeypatch.setattr(recipes, "activation_ranges", wrong)
    run_optimize(copied, "trt", "int8")
    settings = Bundle.open(copied).manifest.targets["trt-int8"].settings
    assert len(settings["fp32_islands"]["step"]) == 1
    assert settings["quantized"]["step"]


# ---- building and running engines


def test_build_without_tensorrt_keeps_the_graphs(edge_attn_cli, copied, monkeypatch):
    def absent(*arguments):
        raise NotTestedError("tensorrt is not installed; run: edge-attn doctor")

    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.open_runtime", absent)
    command = ("optimize", copied, "--target", "trt", "--precision", "fp16", "--threads", 1, "--build")
    error = "trt-fp16 is written, but it was not built or run here: tensorrt is not installed"
    edge_attn_cli(*command, code=3, error=error)
    assert "trt-fp16" in Bundle.open(copied).manifest.targets


def test_build_is_verified_on_the_runtime_that_it_opens(copied, monkeypatch):
    from edge_attn.runtimes.ort.cpu import OrtCpu

    opened = []

    class Engine(OrtCpu):
        name = "an engine"
        closed = False

        def close(self) -> None:
            self.closed = True

    def build(bundle, name, options):
        opened.append((name, options.precision, Engine(bundle, options)))
        return opened[0][2]

    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.open_runtime", build)
    lines = run_optimize(copied, "trt", "fp16", build=True)
    assert [entry[:2] for entry in opened] == [("trt", "fp16")]
    assert opened[0][2].closed
    assert "on an engine (" in lines[-1]
    assert lines[-1].endswith("parity holds")
    before = copied.read_bytes()
    again = run_optimize(copied, "trt", "fp16", build=True)
    assert again[0].startswith(f"{copied} already contains trt-fp16: its graphs are built as they are")
    assert again[1:] == lines[-1:]
    assert len(opened) == 2
    assert copied.read_bytes() == before


def test_missing_target_is_a_command(toy_bundle):
    command = f"run: edge-attn optimize {toy_bundle} --target trt --precision int8"
    with pytest.raises(NotTestedError, match=command):
        Bundle.open(toy_bundle).target("trt", "int8")


@pytest.mark.parametrize("verb", ["verify", "translate"])
def test_precision_that_a_runtime_lacks_is_usage(edge_attn_cli, toy_bundle, verb):
    error = (
        "the runtime ort-cpu supports fp32, got --precision 'fp16'; fp16 is for ort-cuda, trt, trt-rtx, once edge-attn"
    )
    edge_attn_cli(verb, toy_bundle, "--precision", "fp16", code=2, error=error)
