"""Tests of the report of verify as text, JSON and JUnit: NaN and infinity fail in each format."""

from __future__ import annotations

import json
import math
from typing import Any
from xml.etree import ElementTree

import pytest
from paths import PACKAGE

from edge_attn.parity.results import LevelResult, Measurement, TokenMismatch
from edge_attn.runtimes.verification.junit import junit
from edge_attn.runtimes.verification.markdown import markdown
from edge_attn.runtimes.verification.report import SCHEMA, FailedRun, Report
from edge_attn.runtimes.verification.verify import verify

NAN, INF = math.nan, math.inf


def level(*values: float, name: str = "L1") -> LevelResult:
    return LevelResult(
        name, measurements=[Measurement(name, f"max_abs tensor.{i}", v, 1e-4) for i, v in enumerate(values)]
    ).conclude()


def report(*levels: LevelResult, **changes: Any) -> Report:
    plain = {"bundle": "a <b>", "runtime": "ort-cpu", "provider": "CPU", "precision": "fp32", "against": "golden data"}
    return Report(**{**plain, "sentences": 3, "overrides": {}, "levels": list(levels), **changes})


HOLDS, FAILS = level(0.0, 1e-5), level(0.0, 2e-4, name="L2")
NOT_TESTED, NOT_REQUESTED = LevelResult("L4", "not tested", "verify runs L1"), LevelResult("L0")


@pytest.mark.parametrize(
    ("levels", "verdict", "code"),
    [
        ([HOLDS], "holds", 0),
        ([HOLDS, NOT_REQUESTED], "holds", 0),
        ([HOLDS, FAILS], "fails", 1),
        ([FAILS, NOT_TESTED], "fails", 1),
        ([HOLDS, NOT_TESTED], "not tested", 3),
        ([NOT_REQUESTED], "not tested", 3),
        ([], "not tested", 3),
    ],
)
def test_verdict_requires_tested_levels_that_pass(levels, verdict, code):
    result = report(*levels)
    assert (result.verdict, result.exit_code) == (verdict, code)
    assert str(result).endswith(f"parity {verdict.replace('not tested', 'NOT TESTED')}")
    assert result.content()["verdict"] == verdict


@pytest.mark.parametrize("value", [NAN, INF, -NAN])
def test_nan_and_infinity_never_pass(value):
    result = report(level(0.0, value))
    assert result.exit_code == 1
    findings = json.loads(result.json(), parse_constant=pytest.fail)["levels"][0]["findings"]
    assert [finding["ok"] for finding in findings] == [True, False]
    assert findings[1]["value"] == str(value)
    assert ElementTree.fromstring(junit(result).partition("?>")[2]).get("failures") == "1"
    assert "FAIL L1 max_abs tensor.1" in result.details()


FILE = PACKAGE / "runtimes" / "verification" / "schema.json"


def fits(value: Any, schema: dict[str, Any], where: str = "report") -> None:
    """Check `value` with the part of JSON Schema that schema.json uses."""
    if "$ref" in schema:
        schema = json.loads(FILE.read_text())["$defs"][schema["$ref"].rpartition("/")[2]]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(isinstance(value, kinds[kind]) for kind in types), f"{where} is {value!r}, not {types}"
        assert not isinstance(value, bool) or "boolean" in types, where
    assert value in schema.get("enum", [value]), where
    assert value == schema.get("const", value), where
    assert not isinstance(value, int | float) or value >= schema.get("minimum", value), where
    for key in schema.get("required", ()):
        assert key in value, f"{where} has no {key}"
    properties = schema.get("properties", {})
    for key, inner in properties.items():
        if key in value:
            fits(value[key], inner, f"{where}.{key}")
    for key in value.keys() - properties.keys() if "additionalProperties" in schema else ():
        fits(value[key], schema["additionalProperties"], f"{where}.{key}")
    for i, item in enumerate(value if "items" in schema else ()):
        fits(item, schema["items"], f"{where}[{i}]")
    if "if" in schema:
        try:
            fits(value, schema["if"], where)
        except AssertionError:
            fits(value, schema["else"], where)
        else:
            fits(value, schema["then"], where)


def fits_the_file(content: dict[str, Any]) -> None:
    """Check a report with schema.json, and that the schema names each of its keys."""
    schema = json.loads(FILE.read_text())
    fits(content, schema)
    branch = schema["then" if content["verdict"] == "error" else "else"]
    assert content.keys() == schema["properties"].keys() | branch["properties"].keys()


TEXTS = ("I am cold.", "J'ai", "▁froid", "▁chaud", "J'ai froid.", "J'ai chaud.")
MISMATCHES = [TokenMismatch(3, "greedy", 2, 7, 8, 1e-6, 1e-5), TokenMismatch(4, "beam", 0, 7, -1, INF, 0.0, *TEXTS)]


@pytest.mark.parametrize(
    "example",
    [
        report(HOLDS, FAILS, NOT_TESTED, NOT_REQUESTED),
        report(level(NAN), overrides={"L1.max_abs": 0.5, "L2.kl": 1.0}),
        report(LevelResult("L3", "fails", measurements=[Measurement("L3", "tokens", 0.5, 0.0)], mismatches=MISMATCHES)),
        FailedRun("a.zip", "trt", "fp16", "a.zip is not a bundle", 4),
    ],
)
def test_json_matches_the_schema(example):
    content = json.loads(example.json(), parse_constant=pytest.fail)
    fits_the_file(content)
    assert content == example.content()


def test_schema_check_fails_on_wrong_content():
    content = report(HOLDS).content()
    for invalid in (
        {**content, "verdict": "maybe"},
        {**content, "sentences": "3"},
        {**content, "overrides": {"a": "b"}},
        {**content, "schema": SCHEMA - 1},
        {**content, "verdict": "error"},
        {**content, "unknown": 1},
        {key: value for key, value in content.items() if key != "cause"},
    ):
        with pytest.raises(AssertionError):
            fits_the_file(invalid)


def test_mismatches_are_reported_with_their_excuse():
    content = report(LevelResult("L3", "fails", mismatches=MISMATCHES)).content()
    assert [entry["excused"] for entry in content["levels"][0]["flips"]] == [True, False]
    assert content["levels"][0]["flips"][1]["margin"] == "inf"


def suite_of(example: Report | FailedRun) -> ElementTree.Element:
    return ElementTree.fromstring(junit(example).partition("?>")[2])


def test_junit_has_one_case_per_measurement():
    failed = LevelResult("L3", "fails", measurements=[Measurement("L3", "tokens", 0.5, 0.0)], mismatches=MISMATCHES)
    suite = suite_of(report(HOLDS, FAILS, NOT_TESTED, NOT_REQUESTED, failed, seconds=2.5))
    assert suite.tag == "testsuite"
    assert "a <b>" in suite.get("name")
    assert (suite.get("file"), suite.get("time")) == ("a <b>", "2.500")
    assert suite.get("timestamp").endswith("+00:00")
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "6", "failures": "2", "errors": "1", "skipped": "0"}
    cases = suite.findall("testcase")
    assert [case.get("classname") for case in cases] == ["L1", "L1", "L2", "L2", "L4", "L3"]
    assert all(float(case.get("time")) >= 0 for case in cases)
    assert suite.find("testcase/error").get("message") == "not tested verify runs L1"
    text = suite.findall("testcase/failure")[1].text
    assert "sentence 3, step 2" in text
    assert "device     J'ai chaud." in text
    properties = {item.get("name"): item.get("value") for item in suite.iter("property")}
    assert (properties["provider"], properties["verdict"]) == ("CPU", "fails")
    assert properties["cause"] == "L1 holds; L2 departs: max_abs tensor.1 is 0.0002 (at most 0.0001)"


@pytest.mark.parametrize("name", ["b\udce9", "two\nlines", "a\x00b\x1b[31m", "\ufffe", "é <&>\"'"])
def test_junit_is_xml_for_every_name(name):
    mismatch = TokenMismatch(0, "greedy", 0, 7, 8, INF, 0.0, name, name, name, name, name, name)
    failed = LevelResult("L3", "fails", measurements=[Measurement("L3", name, 0.5, 0.0)], mismatches=[mismatch])
    for example in (report(failed, bundle=name, inputs=[name]), FailedRun(name, name, "fp32", name, 4)):
        suite = suite_of(example)
        is_xml = name[0] in "ét"
        assert suite.get("file") == (name if is_xml else name.encode("unicode_escape").decode())


def test_failed_run_is_an_error_in_every_format():
    run = FailedRun("b.zip", "trt", "fp16", "TensorRT is not installed", 3, 0.25)
    assert json.loads(run.json())["verdict"] == "error"
    assert json.loads(run.json())["reason"] == "TensorRT is not installed"
    suite = suite_of(run)
    assert (suite.get("tests"), suite.get("errors"), suite.get("time")) == ("1", "1", "0.250")
    assert suite.find("testcase/error").get("message") == "TensorRT is not installed"
    assert "**error** (exit code 3)" in markdown(run)
    assert "TensorRT is not installed" in markdown(run)


def test_fault_of_ours_is_named_by_its_class():
    run = FailedRun.of(KeyError("x"), FILE, "ort-cpu", "fp32", 0.0)
    assert (run.exit_code, run.reason) == (70, "a fault of edge-attn: KeyError: 'x'")


def failed_search(count: int) -> LevelResult:
    mismatches = [TokenMismatch(i, "greedy", 2, 7, 8, 0.5, 1e-5, f"line {i} | a", *TEXTS[1:]) for i in range(count)]
    measured = Measurement("L3", "tokens greedy", count / 10, 0.0, "greedy search", 0, "step 2")
    return LevelResult("L3", "fails", measurements=[measured], mismatches=mismatches)


def test_text_has_a_line_for_each_level_and_the_changed_sentences():
    lines = str(report(HOLDS, NOT_REQUESTED, failed_search(7))).splitlines()
    assert [line[:2] for line in lines[1:3]] == ["L1", "L3"]
    assert "holds" in lines[1]
    assert lines[1].endswith("worst of 2: max_abs tensor.1 1e-05 (at most 0.0001)")
    assert lines[2].endswith("tokens greedy 0.7 (at most 0); 7 sentences with other tokens")
    assert lines[4:8] == [
        "  source     line 0 | a",
        "  reference  J'ai froid.",
        "  device     J'ai chaud.",
        "  differs    '▁chaud' instead of '▁froid' after \"J'ai\"",
    ]
    assert "and 2 more sentences, 0 more excused mismatches (--verbose)" in lines
    assert lines[-1] == "parity fails"
    assert lines[-2].startswith("next: edge-attn verify 'a <b>' --reference CHECKPOINT")
    assert str(report(HOLDS)).count("\n") == 2
    assert "ok   L1 max_abs tensor.0" in report(HOLDS).details()


def test_markdown_has_verdict_levels_and_five_changed_sentences():
    text = markdown(report(HOLDS, NOT_REQUESTED, failed_search(7)))
    assert "parity **fails**" in text
    assert "| L1 | encoder outputs, states and alignments | holds | max\\_abs tensor.1 1e-05 | 0.0001 |" in text
    assert text.count("J'ai chaud.") == 5
    assert "line 4 \\| a" in text
    assert "and 2 more changed sentences" in text
    assert "parity holds" in markdown(report(HOLDS))


def test_coverage_is_reported_unless_complete():
    partial = report(HOLDS, coverage={"source entries": (189, 4000), "target entries": (4000, 4000)})
    assert "the golden data uses 189 of 4000 source entries; nothing" in str(partial)
    assert "189 of 4000 source entries" in markdown(partial)
    assert partial.content()["coverage"]["source entries"] == [189, 4000]
    assert "coverage" not in str(report(HOLDS, coverage={"source entries": (4000, 4000)}))


def test_report_of_the_toy_model_in_all_formats(edge_attn_cli, toy_bundle, tmp_path):
    junit = tmp_path / "verify.xml"
    output = edge_attn_cli("verify", toy_bundle, "--json", "--junit", junit, "--threads", 1).stdout
    content = json.loads(output, parse_constant=pytest.fail)
    fits_the_file(content)
    assert content["verdict"] == "holds"
    assert [level["name"] for level in content["levels"]] == ["L1", "L2", "L3", "L5"]
    suite = ElementTree.parse(junit).getroot()
    findings = sum(len(level["findings"]) for level in content["levels"])
    assert suite.get("failures") == "0"
    assert len([case for case in suite.findall("testcase") if len(case) == 0]) == findings


def test_unwritable_junit_is_refused_before_the_work(edge_attn_cli, toy_bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("edge_attn.runtimes.verification.outputs.verify", lambda *_, **__: pytest.fail("verify ran"))
    edge_attn_cli("verify", toy_bundle, "--junit", tmp_path / "file" / "a.xml", code=4, error="cannot be written")
    edge_attn_cli("verify", toy_bundle, "--junit", toy_bundle, code=4, error="is a bundle, and is not overwritten")


def test_summary_has_levels_and_provider(toy_bundle):
    summary = verify(toy_bundle, levels=["L1", "L4"]).summary()
    assert summary["levels"] == {"L1": "holds", "L4": "not tested"}
    assert (summary["runtime"], summary["provider"]) == ("ort-cpu", "CPUExecutionProvider")
