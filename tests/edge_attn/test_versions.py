"""Version numbers as TensorRT, Debian packages and wheels write them."""

from __future__ import annotations

import re
import sys
import types

import pytest
from paths import PROJECT

from edge_attn.errors import NotTestedError
from edge_attn.versions import OLDEST, parse_version, require


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("10.3.0", (10, 3, 0)),
        ("10.3.0.30-1+cuda12.5", (10, 3, 0, 30)),
        ("10.13.0rc1", (10, 13, 0)),
        ("11", (11,)),
        ("", ()),
        ("unknown", ()),
    ],
)
def test_parse_version_returns_the_leading_numbers(text, numbers):
    assert parse_version(text) == numbers


# ---- oldest supported versions


def module(name: str, version: str) -> types.ModuleType:
    created = types.ModuleType(name)
    created.__version__ = version
    return created


def test_oldest_versions_are_those_of_the_requirements():
    """ONNX Runtime 1.18 and 1.19 run bundles too, where a device has its own build."""
    lines = re.findall(
        r'"([a-z0-9-]+)(?:\[[a-z,]+\])?>=([\d.]+)', (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    )
    required = {name.replace("-", "_"): parse_version(version) for name, version in lines}
    assert {name: required[name] for name in OLDEST} == {**OLDEST, "onnxruntime": (1, 20)}
    assert OLDEST["onnxruntime"] < required["onnxruntime"]


@pytest.mark.parametrize("name", OLDEST)
def test_old_module_is_not_tested(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, module(name, "0.0.9"))
    with pytest.raises(NotTestedError, match=rf"^{name} 0\.0\.9 is too old: [\d.]+ or later is needed; run: pip"):
        require(name)


@pytest.mark.parametrize("version", ["99.0", "2.9.0+cpu", "", "nightly"])
def test_new_or_unknown_module_is_accepted(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "torch", module("torch", version))
    require("torch")


def test_absent_module_is_left_to_its_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    require("onnxruntime")


@pytest.mark.parametrize("error", ["ImportError('numpy 2')", "TypeError('Descriptors')", "ModuleNotFoundError('x')"])
def test_module_that_does_not_load_is_not_tested(monkeypatch, tmp_path, error):
    (tmp_path / "onnx_ir.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnx_ir", raising=False)
    with pytest.raises(NotTestedError, match=r"onnx_ir does not load here: .*; 0\.1 or later is needed"):
        require("onnx_ir")


OLD = "import {name}; {name}.__version__ = '{version}'"


@pytest.mark.parametrize("name", ["onnxruntime", "numpy"])
@pytest.mark.parametrize("command", ["translate", "verify", "score"])
def test_old_library_of_the_device_exits_with_3(run_edge_attn, toy_bundle, toy_pairs, command, name):
    arguments = [command, toy_bundle, *([toy_pairs] if command == "score" else [])]
    result = run_edge_attn(*arguments, before=OLD.format(name=name, version="1.17.3"))
    assert (result.returncode, result.stdout) == (3, b"")
    assert result.stderr.startswith(f"edge-attn: {name} 1.17.3 is too old: ".encode())
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize(("command", "name"), [("export", "onnx"), ("optimize", "onnx"), ("export", "torch")])
def test_old_library_of_the_exporter_exits_with_3(run_edge_attn, toy_bundle, toy_checkpoint, tmp_path, command, name):
    pytest.importorskip("torch", reason="torch is not installed: a device needs none")
    export = ["export", toy_checkpoint, "--out", tmp_path / "b"]
    arguments = export if command == "export" else ["optimize", toy_bundle, "--target", "trt"]
    result = run_edge_attn(*arguments, before=OLD.format(name=name, version="1.2"))
    assert (result.returncode, result.stdout) == (3, b"")
    assert b"is too old: " in result.stderr
