"""What verify says, in its three forms; what is no number never passes in any of them."""

from __future__ import annotations

import json
import math
from typing import Any
from xml.etree import ElementTree

import pytest

from edge_attn.parity.results import LevelResult, Measurement, TokenMismatch
from edge_attn.parity.tolerances import LEVELS
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
def test_nothing_but_what_was_tested_and_holds_is_parity(levels, verdict, code):
    made = report(*levels)
    assert (made.verdict, made.exit_code) == (verdict, code)
    assert str(made).endswith(f"parity {verdict.replace('not tested', 'NOT TESTED')}")
    assert made.content()["verdict"] == verdict


@pytest.mark.parametrize("value", [NAN, INF, -NAN])
def test_what_is_no_number_never_passes(value):
    made = report(level(0.0, value))
    assert made.exit_code == 1
    shown = json.loads(made.json(), parse_constant=pytest.fail)["levels"][0]["findings"]
    assert [finding["ok"] for finding in shown] == [True, False]
    assert shown[1]["value"] == str(value)
    assert ElementTree.fromstring(made.junit().partition("?>")[2]).get("failures") == "1"
    assert "FAIL L1 max_abs tensor.1" in str(made)


def fits(value: Any, schema: dict[str, Any], where: str = "report") -> None:
    """The part of JSON Schema that SCHEMA uses."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    if "type" in schema:
        wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(isinstance(value, kinds[kind]) for kind in wanted), f"{where} is {value!r}, not {wanted}"
        assert not isinstance(value, bool) or "boolean" in wanted, where
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


FLIPS = [TokenMismatch(3, "greedy", 2, 7, 8, 1e-6, 1e-5), TokenMismatch(4, "beam", 0, 7, -1, INF, 0.0)]


@pytest.mark.parametrize(
    "made",
    [
        report(HOLDS, FAILS, NOT_TESTED, NOT_REQUESTED),
        report(level(NAN), overrides={"L1.max_abs": 0.5, "L2.kl": 1.0}),
        report(LevelResult("L3", "fails", measurements=[Measurement("L3", "tokens", 0.5, 0.0)], mismatches=FLIPS)),
    ],
)
def test_the_json_is_what_the_schema_says(made):
    content = json.loads(made.json(), parse_constant=pytest.fail)
    fits(content, SCHEMA)
    assert content == made.content()


def test_the_check_of_the_schema_rings():
    content = report(HOLDS).content()
    for wrong in ({**content, "verdict": "maybe"}, {**content, "sentences": "3"}, {**content, "overrides": {"a": "b"}}):
        with pytest.raises(AssertionError):
            fits(wrong, SCHEMA)


def test_a_flip_tells_whether_it_is_excused():
    content = report(LevelResult("L3", "fails", mismatches=FLIPS)).content()
    assert [flip["excused"] for flip in content["levels"][0]["flips"]] == [True, False]
    assert content["levels"][0]["flips"][1]["margin"] == "inf"


def test_junit_has_a_case_a_finding():
    flips = LevelResult("L3", "fails", measurements=[Measurement("L3", "tokens", 0.5, 0.0)], mismatches=FLIPS)
    suite = ElementTree.fromstring(report(HOLDS, FAILS, NOT_TESTED, NOT_REQUESTED, flips).junit().partition("?>")[2])
    assert suite.tag == "testsuite"
    assert "a <b>" in suite.get("name")
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "7", "failures": "2", "errors": "1", "skipped": "1"}
    assert [case.get("classname") for case in suite] == ["L1", "L1", "L2", "L2", "L4", "L0", "L3"]
    assert suite.find("testcase/error").get("message") == "not tested verify runs L1"
    assert "sentence 3, step 2" in suite.findall("testcase/failure")[1].text


def test_a_report_of_the_toy_model_in_all_forms(edge_attn_cli, toy_bundle, tmp_path):
    junit = tmp_path / "verify.xml"
    said = edge_attn_cli("verify", toy_bundle, "--json", "--junit", junit, "--threads", 1).stdout
    content = json.loads(said, parse_constant=pytest.fail)
    fits(content, SCHEMA)
    assert content["verdict"] == "holds"
    assert [found["name"] for found in content["levels"]] == list(LEVELS)
    suite = ElementTree.parse(junit).getroot()
    findings = sum(len(found["findings"]) for found in content["levels"])
    assert suite.get("failures") == "0"
    assert len([case for case in suite if len(case) == 0]) == findings


def test_a_summary_is_what_a_manifest_keeps(toy_bundle):
    found = verify(toy_bundle, levels=["L1", "L4"]).summary()
    assert found["levels"] == {"L1": "holds", "L4": "not tested"}
    assert (found["runtime"], found["provider"]) == ("ort-cpu", "CPUExecutionProvider")
