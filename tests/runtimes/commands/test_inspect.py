"""`edge-attn inspect` says what a bundle holds."""

from __future__ import annotations

import hashlib
import json
import zipfile

from edge_attn.bundle.bundle import Bundle
from edge_attn.runtimes.commands.inspect import inspect, show


def test_as_json_it_is_the_manifest_and_more(edge_attn_cli, toy_bundle):
    content = json.loads(edge_attn_cli("inspect", toy_bundle, "--json").stdout)
    manifest = Bundle.open(toy_bundle).manifest
    assert content["path"] == str(toy_bundle)
    assert (content["family"], content["task"], content["precision"]) == ("seq2seq", "seq2seq", "fp32")
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


def test_as_text_it_names_what_a_reader_looks_for(edge_attn_cli, toy_bundle):
    said = edge_attn_cli("inspect", toy_bundle).stdout
    for words in (
        "seq2seq, fp32, 0.",
        "text: words, 31 source and 31 target entries, sources of up to 20 tokens",
        "graph encoder: graphs/encoder.onnx",
        "graph step: graphs/step.onnx",
        "MatMul",
        "input  tokens int64 (batch, beam)",
        "output log_probs float32 (batch, beam, 31)",
        "verified at export: L1 holds, L2 holds, L3 holds, L5 holds (CPUExecutionProvider)",
        "file golden/golden.npz: ",
        "parameters: ",
        "checkpoint_sha256: ",
    ):
        assert words in said


def test_a_bundle_that_nobody_verified_or_described_is_shown_too(toy_bundle):
    content = inspect(toy_bundle)
    content["verification"], content["provenance"], content["tolerances"] = {}, {}, {"L2.kl": 1e-9}
    said = show(content)
    assert "verified at export: no record (nothing ran)" in said
    assert "tolerance L2.kl: 1e-09" in said


def test_nothing_that_runs_is_loaded(run_edge_attn, toy_bundle):
    done = run_edge_attn("inspect", toy_bundle, absent=("onnxruntime", "onnx", "torch"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"graph step" in done.stdout


def test_what_is_no_bundle_is_named(edge_attn_cli, tmp_path, toy_checkpoint):
    edge_attn_cli("inspect", tmp_path / "absent", code=4, said="is not a bundle: there is no such file or folder")
    edge_attn_cli("inspect", toy_checkpoint, code=4, said="is not a bundle: it has no bundle.json")
    (tmp_path / "text").write_text("a cat")
    edge_attn_cli("inspect", tmp_path / "text", code=4, said="is neither a folder nor a complete zip")


def test_targets_are_shown_with_what_was_chosen_and_what_was_tested(toy_bundle):
    content = inspect(toy_bundle)
    content["targets"] = {
        "trt-int8": {
            "graphs": {"step": {"file": "graphs/step.onnx"}},
            "settings": {"min_version": "10.3", "fp32_islands": {"encoder": [], "step": ["val_9"]}, "plugins": []},
            "verification": {"levels": {"L1": "holds"}, "provider": "CPUExecutionProvider", "engine": "not tested"},
        }
    }
    said = show(content)
    assert "target trt-int8: 0." in said
    assert "MB, L1 holds (CPUExecutionProvider; the engine: not tested)" in said
    assert "\n  min_version: 10.3\n  fp32_islands: step val_9\n" in said
    assert "plugins" not in said
