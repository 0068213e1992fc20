"""`edge-attn optimize`: what is refused is not written, and leaves the bundle as it was."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from paths import KINDS_FOLDER

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

from optimize_cases import planted, quietly

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import write_bundle
from edge_attn.errors import ConfigError, InputError, ParityError, UsageError
from edge_attn.registry import TARGETS
from edge_attn.runtimes.optimize import optimize as optimize_module
from edge_attn.runtimes.optimize import targets as recipes
from edge_attn.runtimes.optimize.calibration import largest
from edge_attn.runtimes.optimize.optimize import optimize
from edge_attn.storage import locks

KINDS = {path.stem: path for path in sorted(KINDS_FOLDER.glob("*.zip"))}


def refused(path: Path, kind: type[Exception], sentence: str, *arguments: object, **options: object) -> None:
    before = path.read_bytes()
    with pytest.raises(kind, match=sentence):
        optimize(path, *arguments, threads=1, say=lambda line: None, **options)
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
        ("fp32", ParityError, "the trt-fp32 graphs of .* do not say what the reference says"),
        ("fp16", ParityError, "the trt-fp16 graphs of .* do not say what the reference says"),
        ("int8", InputError, "hold NaN or infinity|reaches nan"),
    ],
)
def test_a_weight_that_is_no_number_is_never_written(copied, precision, kind, sentence):
    refused(planted(copied, "step", nan), kind, sentence, "trt", precision)


def test_scales_that_are_all_wrong_leave_nothing_to_quantize(copied, monkeypatch):
    def wrecked(bundle, models, tensors, *rest):
        found = largest(bundle, models, tensors, *rest)
        return {graph: dict.fromkeys(scales, 1e-6) for graph, scales in found.items()}

    monkeypatch.setattr(recipes, "largest", wrecked)
    refused(copied, ParityError, "nothing of its graphs can be int8 within the bounds|do not say", "trt", "int8")


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
def test_what_the_oldest_version_cannot_read_is_said_before_anything_runs(copied, monkeypatch, change, sentence):
    monkeypatch.setattr("edge_attn.runtimes.optimize.build_target.choose", None)
    refused(planted(copied, "step", change), InputError, sentence, "trt", "fp32")


def test_a_file_that_is_no_graph(copied):
    bundle = Bundle.open(copied)
    write_bundle(copied, bundle.manifest, {**bundle.files(), "graphs/step.onnx": b"no graph"}, force=True)
    refused(copied, InputError, r"graphs/step\.onnx is not an ONNX graph", "trt")


def stranger(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Stranger", ["log_probs"], ["z"]))


def hollow(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["z"]))


def dangling(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Exp", ["nothing"], ["z"]))


INVALID = r"graphs/step\.onnx is not an ONNX graph: [^\n]*$"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(stranger, INVALID), (dangling, INVALID), (hollow, "the Constant 'z' has 0 attributes, expected 1")],
)
@pytest.mark.parametrize("target", TARGETS)
def test_a_graph_that_is_not_valid(copied, target, change, sentence):
    refused(planted(copied, "step", change), InputError, sentence, target)


NONSENSE = {
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
    "an old version": (("trt",), {"min_version": "8.6"}, "the oldest version of TensorRT that is served is 10.3"),
    "a version nobody knows": (("trt",), {"min_version": "99.9"}, r"the newest TensorRT that is known is 11\.x, got"),
    **{
        f"{minutes} minutes": (("trt",), {"max_build_minutes": minutes}, "--max-build-minutes must be a number more")
        for minutes in (float("nan"), float("inf"), 0.0)
    },
}


@pytest.mark.parametrize("what", NONSENSE)
def test_what_makes_no_sense_is_usage(copied, what):
    arguments, options, sentence = NONSENSE[what]
    refused(copied, UsageError, sentence, *arguments, **options)


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "cannot be read"), (b"\n \n", "is empty"), (b"\xff", "not UTF-8")]
)
def test_lines_that_are_none(copied, tmp_path, content, sentence):
    lines = tmp_path / "lines.txt"
    if content is not None:
        lines.write_bytes(content)
    refused(copied, InputError, sentence, "trt", "int8", calibration=lines)


def test_a_bundle_that_was_replaced_meanwhile_is_left_alone(copied, toy_bundle, monkeypatch):
    other = next(iter(KINDS.values()))

    def replaced(*arguments):
        shutil.copy(other, copied)
        return recipes.nothing(*arguments)

    monkeypatch.setitem(recipes.TRT.lowerings, "fp32", replaced)
    with pytest.raises(InputError, match="was replaced while it was optimized; run the command again"):
        quietly(copied, "trt", "fp32")
    assert copied.read_bytes() == other.read_bytes()


def test_new_weights_with_the_same_interface_are_another_bundle(copied, monkeypatch):
    def replaced(*arguments):
        planted(copied, "step", nan)
        return recipes.nothing(*arguments)

    monkeypatch.setitem(recipes.TRT.lowerings, "fp32", replaced)
    with pytest.raises(InputError, match="was replaced while it was optimized; run the command again"):
        quietly(copied, "trt", "fp32")
    assert not Bundle.open(copied).manifest.targets


def test_a_target_that_was_added_meanwhile_stays(copied, monkeypatch):
    def added(*arguments):
        quietly(copied, "ort-cuda", "fp32")
        return recipes.nothing(*arguments)

    monkeypatch.setitem(recipes.TRT.lowerings, "fp32", added)
    quietly(copied, "trt", "fp32")
    assert set(Bundle.open(copied).manifest.targets) == {"trt-fp32", "ort-cuda-fp32"}


def test_nobody_else_writes_from_before_the_bundle_is_read_again(copied, monkeypatch):
    def alone(*arguments):
        assert locks.is_locked(copied.with_name(f".{copied.name}.edge-attn.lock"))
        return added(*arguments)

    added = optimize_module._with
    monkeypatch.setattr(optimize_module, "_with", alone)
    quietly(copied, "ort-cuda", "fp32")
    assert "ort-cuda-fp32" in Bundle.open(copied).manifest.targets


@pytest.mark.parametrize("minutes", ["nan", "inf", "0.0"])
def test_minutes_that_are_none_in_the_table(tmp_path, minutes):
    table = tmp_path / "build.toml"
    table.write_text(f"max_build_minutes = {minutes}\n")
    with pytest.raises(ConfigError, match="max_build_minutes must be"):
        optimize(tmp_path / "absent", "trt", profiles=table)


def test_profiles_are_read_before_anything_else(tmp_path):
    with pytest.raises(InputError, match=r"profiles\.toml cannot be read"):
        optimize(tmp_path / "absent", "trt", profiles=tmp_path / "profiles.toml")


def test_a_bundle_that_cannot_be_written_is_said_before_the_work(copied, monkeypatch):
    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.make", None)
    refused(copied, InputError, "toy.zip cannot be written: Read-only file system", "trt")


def test_a_full_disk_is_said_before_the_work(copied, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.make", None)
    refused(copied, InputError, "toy.zip cannot be written: 0.0 MB are free in", "trt")
