"""`edge-attn inspect` shows the content of a bundle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile

import pytest
from bundle_files import FILES, GRAPH, make_manifest
from paths import EMBEDDED_BUNDLE
from verify_reports import planted

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import write_bundle
from edge_attn.runtimes.commands.inspect import inspect
from edge_attn.spec import TensorSpec


def test_json_contains_the_manifest(edge_attn_cli, toy_bundle):
    content = json.loads(edge_attn_cli("inspect", toy_bundle, "--json").stdout)
    manifest = Bundle.open(toy_bundle).manifest
    assert content["path"] == str(toy_bundle)
    assert (content["family"], content["task"], content["precision"]) == ("seq2seq", "translation", "fp32")
    assert content["max_source"] == manifest.max_source == 20
    assert content["text"] == {"kind": "words", "source_entries": 31, "target_entries": 31}
    assert content["bytes"] == sum(entry.size for entry in manifest.files.values())
    assert content["graphs"]["step"]["inputs"][0] == {
        "name": "tokens",
        "dtype": "int64",
        "shape": ["batch", "beam"],
        "values": list(manifest.graphs["step"].inputs[0].values),
    }
    with zipfile.ZipFile(toy_bundle) as archive:
        data = archive.read("graphs/step.onnx")
    assert content["files"]["graphs/step.onnx"] == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    assert content["verification"]["levels"] == {"L1": "holds", "L2": "holds", "L3": "holds", "L5": "holds"}


def test_text_begins_with_what_the_model_is(edge_attn_cli, toy_bundle):
    text = edge_attn_cli("inspect", toy_bundle).stdout
    assert [line.partition(": ")[0] for line in text.splitlines()[1:6]] == [
        "model",
        "vocabularies",
        "limits",
        "size",
        "verified at export",
    ]
    for words in (
        "\nvocabularies: words, 31 source and 31 target entries\n",
        "\nlimits: sources of up to 20 tokens, beam of up to ",
        "graph encoder: graphs/encoder.onnx",
        "graph step: graphs/step.onnx",
        "input  tokens int64 (batch, beam)",
        "output log_probs float32 (batch, beam, 31)",
        "verified at export: L1 holds, L2 holds, L3 holds, L5 holds (CPUExecutionProvider)",
        "\ntargets: none beside the portable graphs\n",
    ):
        assert words in text
    for words in ("sha256", "MatMul", "onnx: "):
        assert words not in text


def test_details_have_ops_provenance_and_hashes(edge_attn_cli, toy_bundle):
    short = edge_attn_cli("inspect", toy_bundle).stdout.splitlines()
    text = edge_attn_cli("inspect", toy_bundle, "--verbose").stdout
    assert text.splitlines()[:5] == short[:5]
    for words in ("MatMul", "file golden/golden.npz: ", "sha256", "parameters: ", "checkpoint_sha256: "):
        assert words in text


def test_embedded_model_is_named_by_its_card():
    lines = str(inspect(EMBEDDED_BUNDLE)).splitlines()
    assert "English to French" in lines[0]
    assert "GRU decoder, additive attention, " in lines[1]
    assert " M weights, fp32" in lines[1]


@pytest.mark.parametrize(
    ("provenance", "expected"),
    [
        ({"cell": "lstm", "attention": "local-m general"}, "LSTM decoder, local-m general attention"),
        ({"cell": "gru", "attention": "none"}, "GRU decoder, no attention"),
        (
            {"graphs": {"step": {"ops": {"edge_attn::MultiHeadDotAttention": 1}}}},
            "GRU decoder, multi head dot attention",
        ),
        ({}, "GRU decoder"),
    ],
)
def test_cell_and_attention_come_from_the_provenance(opened, tmp_path, provenance, expected):
    path = planted(opened, tmp_path / "a.zip", lambda files: None, provenance=provenance)
    assert f"model: seq2seq for translation, {expected}, fp32" in str(inspect(path))


def test_bundle_without_records_is_shown(toy_bundle):
    inspection = inspect(toy_bundle)
    inspection.content.update({"verification": {}, "provenance": {}, "tolerances": {"L2.kl": 1e-9}})
    assert "verified at export: no record (nothing ran)" in str(inspection)
    assert "tolerance L2.kl: 1e-09" in str(inspection)


def test_bundle_without_text_is_shown(toy_bundle):
    inspection = inspect(toy_bundle)
    inspection.content["text"] = None
    assert "vocabularies: " not in str(inspection)


def test_inspect_needs_no_runtime(run_edge_attn, toy_bundle):
    result = run_edge_attn("inspect", toy_bundle, absent=("onnxruntime", "onnx", "torch"))
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"graph step" in result.stdout


def test_path_without_a_bundle_is_an_error(edge_attn_cli, tmp_path, toy_checkpoint):
    edge_attn_cli("inspect", tmp_path / "absent", code=4, error="is not a bundle: there is no such file or folder")
    edge_attn_cli("inspect", toy_checkpoint, code=4, error="is not a bundle: it is a checkpoint of edge-attn")
    (tmp_path / "text").write_text("a cat")
    edge_attn_cli("inspect", tmp_path / "text", code=4, error="is neither a folder nor a complete zip")


def test_targets_show_settings_and_verification(toy_bundle):
    inspection = inspect(toy_bundle)
    inspection.content["targets"] = {
        "trt-int8": {
            "graphs": {"step": {"file": "graphs/step.onnx"}},
            "settings": {"min_version": "10.3", "fp32_islands": {"encoder": [], "step": ["val_9"]}, "plugins": []},
            "verification": {"levels": {"L1": "holds"}, "provider": "CPUExecutionProvider", "engine": "not tested"},
        }
    }
    assert "target trt-int8: 0." in str(inspection)
    assert "min_version" not in str(inspection)
    text = inspection.details()
    assert "\ntargets: trt-int8\n" in text
    assert "target trt-int8: 0." in text
    assert "MB, L1 holds (CPUExecutionProvider; the engine: not tested)" in text
    assert "\n  min_version: 10.3\n  fp32_islands: step val_9\n" in text
    assert "plugins" not in text


def test_terminal_codes_of_a_manifest_are_escaped(edge_attn_cli, tmp_path):
    manifest = make_manifest(provenance={"note": "\x1b[31mred\nsecond line", "attention": "a\x07"})
    write_bundle(tmp_path / "b", manifest, {**FILES, "MODEL_CARD.md": b"# \x1b]0;title\x07\n"})
    text = edge_attn_cli("inspect", tmp_path / "b", "--verbose").stdout
    assert r"note: \x1b[31mred\nsecond line" in text
    assert r"\x1b]0;title\x07" in text
    assert text.replace("\n", "").isprintable()


def test_candidates_without_an_axis_are_shown(tmp_path):
    outputs = (TensorSpec("candidates", "int64", ()),)
    graphs = {"encoder": dataclasses.replace(GRAPH, outputs=outputs)}
    write_bundle(tmp_path / "b", make_manifest(graphs=graphs), FILES)
    assert inspect(tmp_path / "b").content["model"]["beam"] is None
