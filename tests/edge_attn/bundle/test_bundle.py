"""A bundle opens only if it is complete and unchanged."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from bundle_files import FILES, GRAPH, make_manifest

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import FORMAT, MANIFEST, Target
from edge_attn.bundle.writer import write_bundle
from edge_attn.errors import BundleError, ConfigError, NotTestedError, one_line


@pytest.fixture(params=["folder", "zip"])
def path(request, tmp_path) -> Path:
    return tmp_path / {"folder": "bundle", "zip": "bundle.zip"}[request.param]


def siblings(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir())


def rewrite(path: Path, change) -> None:
    """Apply `change` to the files of the bundle `path`, a dictionary by name, and write them back."""
    if path.is_dir():
        files = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
        change(files)
        shutil.rmtree(path)
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    else:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        change(files)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)


def test_written_bundle_is_read(path):
    manifest = make_manifest(
        tolerances={"logits": 1e-5}, provenance={"torch": "2", "seeds": [1, 2]}, verification={"ok": True}
    )
    written = write_bundle(path, manifest, FILES)
    bundle = Bundle.open(path)
    assert bundle.manifest == written == dataclasses.replace(manifest, files=written.files)
    assert bundle.manifest.graphs["encoder"].outputs[0].shape == ("batch", "src", 8)
    assert {name: bundle.read(name) for name in FILES} == FILES
    assert bundle.size() == sum(map(len, FILES.values()))
    assert bundle.text().encode_source("b a") == [5, 4, 3]
    assert siblings(path) == [path.name]


def test_folder_and_zip_are_equal_bundles(tmp_path):
    write_bundle(tmp_path / "a", make_manifest(), FILES)
    write_bundle(tmp_path / "a.zip", make_manifest(), FILES)
    shutil.make_archive(str(tmp_path / "by-hand"), "zip", tmp_path / "a")
    a, b, c = (Bundle.open(tmp_path / name) for name in ("a", "a.zip", "by-hand.zip"))
    assert a.manifest == b.manifest == c.manifest


def test_equal_bundles_have_equal_bytes(tmp_path):
    for name in ("a.zip", "b.zip"):
        write_bundle(tmp_path / name, make_manifest(), FILES)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_missing_file_cannot_be_read(path):
    write_bundle(path, make_manifest(), FILES)
    with pytest.raises(BundleError, match=r"golden/x is missing"):
        Bundle.open(path).read("golden/x")


GRAPH_FILE = "graphs/encoder.onnx"


def drop(files):
    del files[GRAPH_FILE]


def truncate(files):
    files[GRAPH_FILE] = files[GRAPH_FILE][:-1]


def flip(files):
    files[GRAPH_FILE] = bytes([files[GRAPH_FILE][0] ^ 1]) + files[GRAPH_FILE][1:]


def add(files):
    files["graphs/other.onnx"] = b""


def drop_manifest(files):
    del files[MANIFEST]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "graphs/encoder.onnx is missing"),
        (truncate, "graphs/encoder.onnx has 319 bytes, expected 320"),
        (flip, "graphs/encoder.onnx was changed: its sha256 is not the manifest's"),
        (add, "graphs/other.onnx is not listed in bundle.json"),
        (drop_manifest, "is not a bundle: it has no bundle.json"),
    ],
)
def test_changed_bundle_is_refused(path, change, message):
    write_bundle(path, make_manifest(), FILES)
    rewrite(path, change)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 4


def edited(**values):
    return lambda content: content.update(values)


def listing(name):
    return lambda content: content["files"].update({name: {"sha256": "0" * 64, "size": 1}})


def in_graph(**values):
    return lambda content: content["graphs"]["encoder"].update(values)


def listed(**values):
    return lambda content: content["files"]["MODEL_CARD.md"].update(values)


INPUTS = [dataclasses.asdict(tensor) for tensor in GRAPH.inputs]


def in_tensor(**values):
    return in_graph(inputs=[{**INPUTS[0], **values}, *INPUTS[1:]])


def in_target(**settings):
    target = {"target": "trt", "precision": "fp32", "settings": settings}
    return lambda content: content.update(targets={"trt-fp32": {**target, "graphs": content["graphs"]}})


def in_measured(graphs):
    return in_target(plugins={"measured": {"graphs": graphs}})


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edited(color="red"), "unknown key 'color'"),
        (edited(format=FORMAT + 1), rf"has format {FORMAT + 1}, this version reads up to {FORMAT}; install a newer"),
        (edited(format="1"), "has no format number"),
        (edited(format=True), "format must be of type int, got True"),
        (edited(format=0), "has no format number"),
        (edited(max_source="9"), "max_source must be of type int, got '9'"),
        (edited(max_source=0), "max_source must be at least 1"),
        (edited(task="painter"), "unknown task 'painter'; known: translation"),
        (edited(precision="fp8"), "unknown precision 'fp8'"),
        (edited(mask_policy="large"), "mask_policy must be one of zero"),
        (edited(graphs=[]), "graphs must be a table"),
        (edited(graphs={"encoder": 3}), "graphs.encoder must be a table, got 3"),
        (edited(tolerances={"a": "b"}), "tolerances.a must be of type float, got 'b'"),
        (edited(files={}), "the graph 'encoder' is in 'graphs/encoder.onnx', which files does not list"),
        (edited(files={"a": {"size": 1}}), "files.a: the key 'sha256' is missing"),
        (in_graph(file="graphs/step.onnx"), "the graph 'encoder' is in 'graphs/step.onnx', which files does not list"),
        (in_graph(inputs={}), "graphs.encoder: inputs must be a list"),
        (in_graph(color=1), "graphs.encoder: unknown key 'color'"),
        (in_graph(outputs=[{"name": "x", "dtype": "int64", "shape": [1.5]}]), "neither a name nor a size"),
        (listing("../x"), r"files: '\.\./x' leaves the bundle"),
        (listing("a/../../x"), "leaves the bundle"),
        (listing("/etc/passwd"), "files: '/etc/passwd' leaves the bundle"),
        (listing("..\\x"), "leaves the bundle"),
        (listing("./a"), "leaves the bundle"),
        (listing("a\0"), "leaves the bundle"),
        (lambda content: content.pop("family"), "the key 'family' is missing"),
        (edited(max_source=2**40), "max_source must be at least 1 and at most 2147483648"),
        (edited(tolerances={"logits": -1.0}), "tolerances: logits must be at least 0 and finite"),
        (edited(tolerances={"logits": math.nan}), "tolerances.logits must be of type float, got 'NaN'"),
        (edited(tolerances={"logits": 10**400}), "is not JSON|is out of range"),
        (edited(provenance=[]), "provenance must be a table"),
        (edited(provenance={"graphs": [1]}), "provenance: graphs must be a table"),
        (edited(provenance={"graphs": {"step": 3}}), "provenance: graphs.step must be a table"),
        (edited(provenance={"graphs": {"step": {"ops": ["Add"]}}}), "provenance: graphs: step: ops must be a table"),
        (edited(provenance={"graphs": {"step": {"nodes": "x"}}}), "nodes must be of type int, got 'x'"),
        (edited(provenance={"folded": "no"}), "provenance: folded must be of type bool, got 'no'"),
        (edited(provenance={"parameters": 1.5}), "provenance: parameters must be of type int"),
        (edited(provenance={"note": "\udc80"}), "half of a surrogate pair"),
        (edited(provenance={"note": nested(100)}), "is nested more than 32 deep"),
        (edited(verification={"levels": ["L1"]}), "verification: levels must be a table"),
        (edited(verification={"levels": {"L1": None}}), "verification: levels.L1 must be of type str, got None"),
        (edited(verification={"plugins": {"levels": 1}}), "verification: plugins: levels must be a table"),
        (edited(verification={"provider": 1}), "verification: provider must be of type str, got 1"),
        (in_target(build=3), "settings: build must be a table, got 3"),
        (in_target(min_version=10.3), "settings: min_version must be of type str, got 10.3"),
        (in_target(modules=3), "settings: modules must be a table, got 3"),
        (in_target(modules={"a.onnx": 3}), "settings: modules.a.onnx must be a table, got 3"),
        (in_target(plugins=3), "settings: plugins must be a table, got 3"),
        (in_target(plugins=[3]), r"settings: plugins\[0\] must be of type str, got 3"),
        (in_target(plugins={"ops": 3}), "settings: plugins: ops must be a list, got 3"),
        (in_target(plugins={"graphs": 3}), "settings: plugins: graphs must be a table, got 3"),
        (in_target(plugins={"measured": 3}), "settings: plugins: measured must be a table, got 3"),
        (in_measured(3), "settings: plugins: measured: graphs must be a table, got 3"),
        (in_measured({"step": 3}), "settings: plugins: measured: graphs.step must be a table, got 3"),
        (in_measured({"step": {"plugin": 1}}), "measured: graphs: step: plugin must be of type bool, got 1"),
        (listed(size=-1), "files.MODEL_CARD.md: size must be at least 0, got -1"),
        (listed(sha256="0" * 63), "sha256 must be 64 digits of 0 to 9 and a to f"),
        (listed(sha256="Z" * 64), "sha256 must be 64 digits of 0 to 9 and a to f"),
        (in_tensor(dtype="string"), "has the unknown dtype 'string'"),
        (in_tensor(shape=[-1]), "neither a name nor a size"),
        (in_tensor(shape=[2**40]), "neither a name nor a size"),
        (in_tensor(shape=[""]), "neither a name nor a size"),
        (in_tensor(shape=[None]), "neither a name nor a size"),
        (in_tensor(values=[0]), "must be a minimum and a maximum"),
        (in_tensor(values=[0, 1, 2]), "must be a minimum and a maximum"),
        (in_tensor(values=[[], {}]), "must be a minimum and a maximum"),
        (in_tensor(values=[True, False]), "must be a minimum and a maximum"),
        (in_tensor(values=[5, 4]), "have a minimum above the maximum"),
        (lambda content: content["graphs"]["encoder"].update(inputs=INPUTS * 2), "have the same name"),
    ],
)
def test_bad_manifest_is_refused(path, change, message):
    def change_manifest(files):
        content = json.loads(files[MANIFEST])
        change(content)
        files[MANIFEST] = json.dumps(content).encode()

    write_bundle(path, make_manifest(), FILES)
    rewrite(path, change_manifest)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(path)
    assert str(path) in str(caught.value)
    assert len(one_line(caught.value)) <= 288


@pytest.mark.parametrize(
    "settings",
    [{}, {"modules": None, "min_version": None}, {"plugins": []}, {"plugins": ["AdditiveAttention"]}, {"newer": 3}],
)
def test_settings_of_another_version_are_loaded(path, settings):
    def change_manifest(files):
        content = json.loads(files[MANIFEST])
        in_target(**settings)(content)
        files[MANIFEST] = json.dumps(content).encode()

    write_bundle(path, make_manifest(), FILES)
    rewrite(path, change_manifest)
    assert Bundle.open(path).manifest.targets["trt-fp32"].settings == settings


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null"])
def test_manifest_that_is_not_json_is_refused(path, data):
    write_bundle(path, make_manifest(), FILES)
    rewrite(path, lambda files: files.update({MANIFEST: data}))
    with pytest.raises(BundleError, match=r"is not JSON|has no format number|is nested more than 32 deep"):
        Bundle.open(path)


def test_missing_path_and_plain_file_are_refused(tmp_path):
    with pytest.raises(BundleError, match="there is no such file or folder"):
        Bundle.open(tmp_path / "none")
    (tmp_path / "x.zip").write_bytes(b"not a zip")
    with pytest.raises(BundleError, match="neither a folder nor a complete zip"):
        Bundle.open(tmp_path / "x.zip")


def test_named_pipe_is_refused(tmp_path):
    write_bundle(tmp_path / "bundle", make_manifest(), FILES)
    os.mkfifo(tmp_path / "bundle" / "pipe")
    with pytest.raises(BundleError, match="pipe is not listed"):
        Bundle.open(tmp_path / "bundle")
    (tmp_path / "bundle" / "pipe").rename(tmp_path / "bundle" / GRAPH_FILE)  # a read would never return
    with pytest.raises(BundleError, match=r"encoder\.onnx is not a plain file"):
        Bundle.open(tmp_path / "bundle")


def zip_with(path: Path, name: str, data: bytes = b"x") -> Path:
    write_bundle(path, make_manifest(), FILES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", [GRAPH_FILE, MANIFEST])
def test_zip_with_a_duplicate_name_is_refused(tmp_path, name):
    with pytest.raises(BundleError, match=f"{name} is in the zip twice"):
        Bundle.open(zip_with(tmp_path / "b.zip", name, FILES.get(name, b"{}")))


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_zip_with_a_path_outside_is_refused_and_writes_nothing(tmp_path, name):
    path = zip_with(tmp_path / "inner" / "b.zip", name)
    with pytest.raises(BundleError, match="is not listed"):
        Bundle.open(path)
    assert not list(tmp_path.rglob("*outside*"))


def change_item(path: Path, **attributes) -> Path:
    """Return a zip of the bundle in which the graph's entry has other attributes."""
    write_bundle(path, make_manifest(), FILES)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            item = zipfile.ZipInfo(name)
            for attribute, value in attributes.items() if name == GRAPH_FILE else ():
                setattr(item, attribute, value)
            archive.writestr(item, data)
    return path


def test_link_in_a_zip_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"encoder\.onnx is a link"):
        Bundle.open(change_item(tmp_path / "b.zip", external_attr=0o120777 << 16))


def test_unusual_compression_is_refused(tmp_path):
    with pytest.raises(BundleError, match="compressed in a way"):
        Bundle.open(change_item(tmp_path / "b.zip", compress_type=zipfile.ZIP_LZMA))


def test_truncated_or_changed_zip_is_refused_or_complete(tmp_path):
    """No other error is raised, and no other content is read."""
    path = tmp_path / "b.zip"
    write_bundle(path, make_manifest(), FILES)
    whole, manifest = path.read_bytes(), Bundle.open(path).manifest
    refused = 0
    for i in range(0, len(whole), 3):
        for damaged in (whole[:i], whole[:i] + bytes([whole[i] ^ 0x41]) + whole[i + 1 :]):
            path.write_bytes(damaged)
            try:
                bundle = Bundle.open(path)
            except BundleError:
                refused += 1
            else:
                assert bundle.manifest == manifest
                assert {name: bundle.read(name) for name in FILES} == FILES
    assert refused > len(whole) // 3


# ---- targets


OPTIMIZED = "targets/trt-fp16/encoder.onnx"


def make_target(**options) -> Target:
    graphs = {"encoder": dataclasses.replace(GRAPH, file=OPTIMIZED)}
    return Target(**{"target": "trt", "precision": "fp16", "graphs": graphs, **options})


def test_target_is_written_and_read(path):
    target = make_target(
        settings={"min_version": "10.3", "fp32_islands": {"step": ["a"]}}, verification={"engine": "not tested"}
    )
    write_bundle(path, make_manifest(targets={"trt-fp16": target}), {**FILES, OPTIMIZED: b"optimized"})
    bundle = Bundle.open(path)
    assert bundle.target("trt", "fp16") == target
    assert bundle.read(OPTIMIZED) == b"optimized"
    assert bundle.files() == {**FILES, OPTIMIZED: b"optimized"}


@pytest.mark.parametrize(("name", "precision"), [("trt", "int8"), ("ort-cuda", "fp16")])
def test_missing_target_names_the_command_that_writes_it(path, name, precision):
    write_bundle(path, make_manifest(targets={"trt-fp16": make_target()}), {**FILES, OPTIMIZED: b"optimized"})
    command = f"{path} has no {precision} graphs for {name}; run: edge-attn optimize {path} --target {name} --precision"
    with pytest.raises(NotTestedError, match=f"{command} {precision}") as caught:
        Bundle.open(path).target(name, precision)
    assert caught.value.exit_code == 3


def test_bundle_of_format_1_has_no_targets(path):
    write_bundle(path, make_manifest(), FILES)

    def to_format_1(files):
        content = json.loads(files[MANIFEST])
        content["format"] = 1
        del content["targets"]
        files[MANIFEST] = json.dumps(content).encode()

    rewrite(path, to_format_1)
    assert Bundle.open(path).manifest.targets == {}


def test_graph_of_a_target_must_be_listed(tmp_path):
    with pytest.raises(
        BundleError, match=r"the graph 'trt-fp16/encoder' is in 'targets/trt-fp16/encoder\.onnx', which"
    ):
        write_bundle(tmp_path / "a", make_manifest(targets={"trt-fp16": make_target()}), FILES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("trt-int8", {}, "targets: 'trt-int8' has the target and precision of 'trt-fp16'"),
        ("trt-fp8", {"precision": "fp8"}, "unknown precision 'fp8'; known: fp32, fp16, int8"),
    ],
)
def test_contradictory_target_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_manifest(targets={name: make_target(**options)})


def test_folder_without_a_manifest_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "walk", lambda path: pytest.fail("the folder was read"))
    with pytest.raises(BundleError, match=r"is not a bundle: it has no bundle\.json"):
        Bundle.open(tmp_path)
