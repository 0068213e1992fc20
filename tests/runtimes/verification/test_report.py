"""Tests of the report of verify as text, JSON and JUnit: NaN and infinity fail in each format."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any
from xml.etree import ElementTree

import pytest

from edge_attn.parity.results import LevelResult, Measurement, TokenMismatch
from edge_attn.runtimes.verification.report import SCHEMA, Report
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
    assert ElementTree.fromstring(result.junit().partition("?>")[2]).get("failures") == "1"
    assert "FAIL L1 max_abs tensor.1" in str(result)


def fits(value: Any, schema: dict[str, Any], where: str = "report") -> None:
    """Check `value` with the part of JSON Schema that SCHEMA uses."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(isinstance(value, kinds[kind]) for kind in types), f"{where} is {value!r}, not {types}"
        assert not isinstance(value, bool) or "boolean" in types, where
    if "enum" in schema:
        assert value in schema["enum"], where
    for key in schema.get("required", ()):
        assert key in value, f"{where} has no {key}"
    for key, inner in schema.get("properties", {}).items():
        if key in value:
            fits(value[key], inner, f"{where}.{key}")
    if "additionalProperties" in schema:
        for key in value.keys() - schema.get("properties", {}).keys():
            fits(value[key], schema["additionalProperties"], f"{where}.{key}")
    for i, item in enumerate(value if "items" in schema else ()):
        fits(item, schema["items"], f"{where}[{i}]")


MISMATCHES = [TokenMismatch(3, "greedy", 2, 7, 8, 1e-6, 1e-5), TokenMismatch(4, "beam", 0, 7, -1, INF, 0.0)]


@pytest.mark.parametrize(
    "example",
    [
        report(HOLDS, FAILS, NOT_TESTED, NOT_REQUESTED),
        report(level(NAN), overrides={"L1.max_abs": 0.5, "L2.kl": 1.0}),
        report(LevelResult("L3", "fails", measurements=[Measurement("L3", "tokens", 0.5, 0.0)], mismatches=MISMATCHES)),
    ],
)
def test_json_matches_the_schema(example):
    content = json.loads(example.json(), parse_constant=pytest.fail)
    fits(content, SCHEMA)
    assert content == example.content()


def test_schema_check_fails_on_wrong_content():
    content = report(HOLDS).content()
    for invalid in (
        {**content, "verdict": "maybe"},
        {**content, "sentences": "3"},
        {**content, "overrides": {"a": "b"}},
    ):
        with pytest.raises(AssertionError):
            fits(invalid, SCHEMA)


def test_mismatches_are_reported_with_their_excuse():
    content = report(LevelResult("L3", "fails", mismatches=MISMATCHES)).content()
    assert [entry["excused"] for entry in content["levels"][0]["flips"]] == [True, False]
    assert content["levels"][0]["flips"][1]["margin"] == "inf"


def test_junit_has_one_case_per_measurement():
    failed = LevelResult("L3", "fails", measurements=[Measurement("L3", "tokens", 0.5, 0.0)], mismatches=MISMATCHES)
    suite = ElementTree.fromstring(report(HOLDS, FAILS, NOT_TESTED, NOT_REQUESTED, failed).junit().partition("?>")[2])
    assert suite.tag == "testsuite"
    assert "a <b>" in suite.get("name")
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "7", "failures": "2", "errors": "1", "skipped": "1"}
    assert [case.get("classname") for case in suite] == ["L1", "L1", "L2", "L2", "L4", "L0", "L3"]
    assert suite.find("testcase/error").get("message") == "not tested verify runs L1"
    assert "sentence 3, step 2" in suite.findall("testcase/failure")[1].text


def test_report_of_the_toy_model_in_all_formats(edge_attn_cli, toy_bundle, tmp_path):
    junit = tmp_path / "verify.xml"
    output = edge_attn_cli("verify", toy_bundle, "--json", "--junit", junit, "--threads", 1).stdout
    content = json.loads(output, parse_constant=pytest.fail)
    fits(content, SCHEMA)
    assert content["verdict"] == "holds"
    assert [level["name"] for level in content["levels"]] == ["L1", "L2", "L3", "L5"]
    suite = ElementTree.parse(junit).getroot()
    findings = sum(len(level["findings"]) for level in content["levels"])
    assert suite.get("failures") == "0"
    assert len([case for case in suite if len(case) == 0]) == findings


@pytest.mark.parametrize("name", ["na\udce9", "\x1b[31m\x01", "a\uffffb", "two\nlines"])
def test_junit_is_xml_whatever_names_contain(tmp_path, name):
    failed = LevelResult(name, "fails", measurements=[Measurement("L3", name, 0.5, 0.0)], reason=name)
    path = tmp_path / "reports" / "junit.xml"
    dataclasses.replace(report(failed), bundle=name).write_junit(path)
    suite = ElementTree.parse(path).getroot()
    assert suite.get("failures") == "1"


def test_unwritable_junit_is_refused_before_the_work(edge_attn_cli, toy_bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("edge_attn.runtimes.verification.verify.verify", lambda **_: pytest.fail("verify ran"))
    edge_attn_cli("verify", toy_bundle, "--junit", tmp_path / "file" / "a.xml", code=4, error="cannot be written")
    edge_attn_cli("verify", toy_bundle, "--junit", toy_bundle, code=4, error="is a bundle, and is not overwritten")


def test_summary_has_levels_and_provider(toy_bundle):
    summary = verify(toy_bundle, levels=["L1", "L4"]).summary()
    assert summary["levels"] == {"L1": "holds", "L4": "not tested"}
    assert (summary["runtime"], summary["provider"]) == ("ort-cpu", "CPUExecutionProvider")
