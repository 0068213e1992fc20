"""`edge-attn verify`: reports on standard output and in files, also when nothing could be verified."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

FAST = ("--level", "L1", "--threads", 1)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("{absent}",), 4, "is not a bundle: there is no such file or folder"),
        (("{bundle}", "--runtime", "trt"), 3, ""),
        (("{bundle}", "--precision", "fp16"), 2, ""),
        (("{bundle}", "--override", "L9.x=1"), 2, "not a bound"),
    ],
)
def test_error_is_in_every_report(edge_attn_cli, toy_bundle, tmp_path, arguments, code, reason):
    names = {"absent": tmp_path / "absent.zip", "bundle": toy_bundle}
    junit, summary = tmp_path / "reports" / "junit.xml", tmp_path / "reports" / "summary.md"
    arguments = [text.format(**names) for text in arguments]
    result = edge_attn_cli("verify", *arguments, "--json", "--junit", junit, "--summary", summary, code=code)
    content = json.loads(result.stdout)
    assert (content["verdict"], content["exit_code"], content["bundle"]) == ("error", code, arguments[0])
    assert reason in content["reason"]
    assert content["seconds"] >= 0
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("1", "1", "0")
    assert suite.find("testcase/error").get("message") == content["reason"]
    assert f"**error** (exit code {code})" in summary.read_text()
    assert result.stderr.startswith("edge-attn: ")


def test_fault_of_ours_is_reported_and_raised(edge_attn_cli, monkeypatch, toy_bundle, tmp_path):
    def fault(*_, **__):
        raise RuntimeError("not foreseen")

    monkeypatch.setattr("edge_attn.runtimes.verification.outputs.verify", fault)
    with pytest.raises(RuntimeError, match="not foreseen"):
        edge_attn_cli("verify", toy_bundle, "--junit", tmp_path / "a.xml")
    error = ElementTree.parse(tmp_path / "a.xml").getroot().find("testcase/error")
    assert error.get("message") == "a fault of edge-attn: RuntimeError: not foreseen"
    assert error.get("type") == "exit code 70"


def test_reports_of_a_verdict_are_written(edge_attn_cli, toy_bundle, tmp_path):
    junit, summary = tmp_path / "junit.xml", tmp_path / "summary.md"
    output = edge_attn_cli("verify", toy_bundle, *FAST, "--junit", junit, "--summary", summary).stdout
    assert output.endswith("parity holds\n")
    assert "| L1 |" in summary.read_text()
    suite = ElementTree.parse(junit).getroot()
    assert float(suite.get("time")) >= sum(float(case.get("time")) for case in suite.iter("testcase")) - 0.1
    assert suite.find("testcase/skipped") is None


def test_dash_is_standard_output(edge_attn_cli, toy_bundle):
    output = edge_attn_cli("verify", toy_bundle, *FAST, "--summary", "-").stdout
    assert "parity holds\n### edge-attn verify: parity holds\n" in output


def test_verbose_shows_every_bound(edge_attn_cli, toy_bundle):
    for arguments in (("verify", toy_bundle, *FAST, "--verbose"), ("-v", "verify", toy_bundle, *FAST)):
        result = edge_attn_cli(*arguments)
        assert "\n  ok   L1 max_abs memory.keys " in result.stdout
        assert result.stderr.startswith("verify 1/1: L1 and L2, ")
    plain = edge_attn_cli("verify", toy_bundle, *FAST)
    assert "max_abs memory.keys" not in plain.stdout
    assert plain.stderr == ""


@pytest.mark.parametrize("change", ["noise", "text"])
def test_failure_shows_texts_cause_and_next_command(edge_attn_cli, opened, tmp_path, change):
    from verify_reports import planted

    def swap_words(files):
        words = json.loads(files["text/target.json"])
        words[4], words[5] = words[5], words[4]
        files["text/target.json"] = json.dumps(words).encode()

    def other_weights(files):
        onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device")
        import numpy as np

        model = onnx.load_from_string(files["graphs/step.onnx"])
        weight = next(tensor for tensor in model.graph.initializer if tuple(tensor.dims) == (24, 31))
        values = onnx.numpy_helper.to_array(weight)
        other = np.random.default_rng(0).permutation(values, axis=1)
        weight.CopyFrom(onnx.numpy_helper.from_array(other, weight.name))
        files["graphs/step.onnx"] = model.SerializeToString()

    path = planted(opened, tmp_path / "a.zip", other_weights if change == "noise" else swap_words)
    result = edge_attn_cli("verify", path, "--json", code=1)
    content = json.loads(result.stdout)
    text = edge_attn_cli("verify", path, code=1).stdout
    assert f"cause: {content['cause']}\n" in text
    assert f"next: {content['next']}\n" in text
    assert content["next"].startswith(f"edge-attn verify {path} ")
    if change == "text":
        assert content["cause"].startswith("the encoder, the step, ")
        assert "the text processing departs" in content["cause"]
    else:
        assert content["cause"].startswith("the encoder holds; the step departs at sentence 0, step ")
        flip = content["levels"][2]["flips"][0]
        assert flip["reference_text"] != flip["candidate_text"]
        assert f"  source     {flip['source']}\n  reference  {flip['reference_text']}\n" in text
