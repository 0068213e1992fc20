"""`edge-attn optimize`: a refusal leaves the bundle as it was."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from paths import KINDS_FOLDER

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

from optimize_cases import change_graph, run_optimize

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import write_bundle
from edge_attn.errors import ConfigError, InputError, ParityError, UsageError
from edge_attn.registry import TARGETS
from edge_attn.runtimes.optimize import optimize as optimize_module
from edge_attn.runtimes.optimize import targets as recipes
from edge_attn.runtimes.optimize.calibration import activation_ranges
from edge_attn.runtimes.optimize.optimize import optimize
from edge_attn.storage import locks

KINDS = {path.stem: path for path in sorted(KINDS_FOLDER.glob("*.zip"))}


def refused(path: Path, kind: type[Exception], sentence: str, *arguments: object, **options: object) -> None:
    before = path.read_bytes()
    with pytest.raises(kind, match=sentence):
        optimize(path, *arguments, threads=1, log=lambda line: None, **options)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.glob(".*")] == []


def nan(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.startswith("val_") and len(t.dims) == 2)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize(
    ("precision", "kind", "sentence"),
    [
        ("fp32", ParityError, "the trt-fp32 graphs of .* differ from the reference"),
        ("fp16", ParityError, "the trt-fp16 graphs of .* differ from the reference"),
        ("int8", InputError, "contain NaN or infinity|reaches nan"),
    ],
)
def test_graph_with_nan_weight_is_never_written(copied, precision, kind, sentence):
    refused(change_graph(copied, "step", nan), kind, sentence, "trt", precision)


def test_wrong_scales_leave_nothing_to_quantize(copied, monkeypatch):
    def wrong(bundle, models, tensors, *rest):
        ranges = activation_ranges(bundle, models, tensors, *rest)
        return {graph: dict.fromkeys(scales, 1e-6) for graph, scales in ranges.items()}

    monkeypatch.setattr(recipes, "activation_ranges", wrong)
    refused(copied, ParityError, "no node of its graphs can be int8 within the bounds|differ from", "trt", "int8")


def counting(model: onnx.ModelProto) -> None:
    node = onnx.helper.make_node("NonZero", ["log_probs"], ["where"], name="planted")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'model.output', 'planted']")
    model.graph.node.append(node)


def newer(model: onnx.ModelProto) -> None:
    for imports in (model.opset_import, *(function.opset_import for function in model.functions)):
        next(entry for entry in imports if entry.domain == "").version = 21


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (counting, r"the graph step: NonZero 'planted' of the module model\.output: the size of its output"),
        (newer, "the graph step has opset 21, TensorRT 10.3 reads up to 20"),
    ],
)
def test_unreadable_op_is_refused_before_anything_runs(copied, monkeypatch, change, sentence):
    monkeypatch.setattr("edge_attn.runtimes.optimize.build_target.plan_precision", None)
    refused(change_graph(copied, "step", change), InputError, sentence, "trt", "fp32")


def test_file_that_is_no_graph_is_refused(copied):
    bundle = Bundle.open(copied)
    write_bundle(copied, bundle.manifest, {**bundle.files(), "graphs/step.onnx": b"no graph"}, force=True)
    refused(copied, InputError, r"graphs/step\.onnx is not an ONNX graph", "trt")


def unknown_op(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Unknown", ["log_probs"], ["z"]))


def hollow(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["z"]))


def dangling(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Exp", ["nothing"], ["z"]))


INVALID = r"graphs/step\.onnx is not an ONNX graph: [^\n]*$"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(unknown_op, INVALID), (dangling, INVALID), (hollow, "the Constant 'z' has 0 attributes, expected 1")],
)
@pytest.mark.parametrize("target", TARGETS)
def test_invalid_graph_is_refused(copied, target, change, sentence):
    refused(change_graph(copied, "step", change), InputError, sentence, target)


WRONG_OPTIONS = {
    "a target": (("tvm",), {}, "unknown target 'tvm'; known: ort-cuda, trt"),
    "a precision": (("trt", "fp8"), {}, "the target trt has fp32, fp16, int8, got precision 'fp8'"),
    "a precision of another target": (("ort-cuda", "int8"), {}, "the target ort-cuda has fp32, fp16, got"),
    "lines for fp16": (("trt", "fp16"), {"calibration": Path("x")}, "--calibration is for int8, got"),
    "a version of what has none": (("ort-cuda",), {"min_version": "10.3"}, "--min-version is for engines"),
    "profiles of what has none": (("ort-cuda",), {"profiles": Path("x")}, "--profiles is for engines"),
    "a plugin of what has none": (("ort-cuda",), {"plugins": ("AdditiveAttention",)}, "--plugin is for engines"),
    "a plugin that is none": (("trt",), {"plugins": ("Exp",)}, "no plugin 'Exp' for the target 'trt'; known: Additive"),
    "no version": (("trt",), {"min_version": ""}, "a version is two to four numbers, as 10.3, got ''"),
    "no version of what has none": (("ort-cuda",), {"min_version": ""}, "--min-version is for engines"),
    "an old version": (("trt",), {"min_version": "8.6"}, "the oldest supported version of TensorRT is 10.3"),
    "an unknown version": (("trt",), {"min_version": "99.9"}, r"the newest TensorRT that is known is 11\.x, got"),
    **{
        f"{minutes} minutes": (("trt",), {"max_build_minutes": minutes}, "--max-build-minutes must be a number more")
        for minutes in (float("nan"), float("inf"), 0.0)
    },
}


@pytest.mark.parametrize("what", WRONG_OPTIONS)
def test_options_that_do_not_apply_are_usage(copied, what):
    arguments, options, sentence = WRONG_OPTIONS[what]
    refused(copied, UsageError, sentence, *arguments, **options)


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "cannot be read"), (b"\n \n", "is empty"), (b"\xff", "not UTF-8")]
)
def test_calibration_file_without_lines_is_refused(copied, tmp_path, content, sentence):
    lines = tmp_path / "lines.txt"
    if content is not None:
        lines.write_bytes(content)
    refused(copied, InputError, sentence, "trt", "int8", calibration=lines)


def test_bundle_that_was_replaced_meanwhile_is_left_alone(copied, toy_bundle, monkeypatch):
    other = next(iter(KINDS.values()))

    def replaced(*arguments):
        shutil.copy(other, copied)
        return recipes.no_conversion(*arguments)

    monkeypatch.setitem(recipes.TRT.conversions, "fp32", replaced)
    with pytest.raises(InputError, match="was replaced while it was optimized; run the command again"):
        run_optimize(copied, "trt", "fp32")
    assert copied.read_bytes() == other.read_bytes()


def test_new_weights_with_the_same_interface_are_refused(copied, monkeypatch):
    def replaced(*arguments):
        change_graph(copied, "step", nan)
        return recipes.no_conversion(*arguments)

    monkeypatch.setitem(recipes.TRT.conversions, "fp32", replaced)
    with pytest.raises(InputError, match="was replaced while it was optimized; run the command again"):
        run_optimize(copied, "trt", "fp32")
    assert not Bundle.open(copied).manifest.targets


def test_target_that_was_added_meanwhile_stays(copied, monkeypatch):
    def added(*arguments):
        run_optimize(copied, "ort-cuda", "fp32")
        return recipes.no_conversion(*arguments)

    monkeypatch.setitem(recipes.TRT.conversions, "fp32", added)
    run_optimize(copied, "trt", "fp32")
    assert set(Bundle.open(copied).manifest.targets) == {"trt-fp32", "ort-cuda-fp32"}


def test_bundle_is_locked_before_it_is_read_again(copied, monkeypatch):
    def alone(*arguments):
        assert locks.is_locked(copied.with_name(f".{copied.name}.edge-attn.lock"))
        return with_target(*arguments)

    with_target = optimize_module._with_target
    monkeypatch.setattr(optimize_module, "_with_target", alone)
    run_optimize(copied, "ort-cuda", "fp32")
    assert "ort-cuda-fp32" in Bundle.open(copied).manifest.targets


@pytest.mark.parametrize("minutes", ["nan", "inf", "0.0"])
def test_invalid_minutes_in_the_table_are_refused(tmp_path, minutes):
    table = tmp_path / "build.toml"
    table.write_text(f"max_build_minutes = {minutes}\n")
    with pytest.raises(ConfigError, match="max_build_minutes must be"):
        optimize(tmp_path / "absent", "trt", profiles=table)


def test_profiles_are_read_before_anything_else(tmp_path):
    with pytest.raises(InputError, match=r"profiles\.toml cannot be read"):
        optimize(tmp_path / "absent", "trt", profiles=tmp_path / "profiles.toml")


def test_read_only_bundle_is_refused_before_the_work(copied, monkeypatch):
    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.build_target", None)
    refused(copied, InputError, "toy.zip cannot be written: Read-only file system", "trt")


def test_full_disk_is_refused_before_the_work(copied, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.build_target", None)
    refused(copied, InputError, "toy.zip cannot be written: 0.0 MB are free in", "trt")
