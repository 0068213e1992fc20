"""`edge-attn doctor` on this machine: its commands, its probes, and libraries that fail to load."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from machines import checks

from edge_attn.runtimes.doctor import machine, probes
from edge_attn.runtimes.doctor.check import doctor
from edge_attn.runtimes.doctor.machine import here


def refuse(*_: object) -> Any:
    raise PermissionError("refused by this test")


def test_this_machine_is_examined_within_three_seconds():
    times = []
    for _ in range(2):  # the first run may read libraries from the disk
        start = time.perf_counter()
        report = doctor()
        times.append(time.perf_counter() - start)
    assert min(times) < 3
    assert "check failed" not in str(report)
    assert checks(report)["runtimes"].status == "ok"
    assert "ort-cpu" in checks(report)["runtimes"].finding


def test_command_prints_the_report_with_its_exit_code(edge_attn_cli):
    code = doctor().exit_code
    assert json.loads(edge_attn_cli("doctor", "--json", code=code).stdout)["verdict"] == ("fault" if code else "ok")
    assert "runtimes" in edge_attn_cli("doctor", code=code).stdout


def test_commands_have_exit_codes():
    assert machine.run("no-such-command-here") == (machine.NO_COMMAND, "")
    assert machine.run(sys.executable, "-c", "print('text'); raise SystemExit(3)") == (3, "text")


def test_slow_command_is_killed_and_its_children_are_not_awaited(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "KILL_TIMEOUT", 0.2)
    pid = tmp_path / "pid"
    start = time.perf_counter()
    assert machine.run("sh", "-c", f"sleep 60 & echo $! > {pid}; wait", timeout=1) == (machine.TIMED_OUT, "")
    assert time.perf_counter() - start < 5
    os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("__version__ = '10.3.0'\nprint('noise')\nimport sys\nprint('{', file=sys.stderr)", {"version": "10.3.0"}),
        ("raise ImportError('libnvinfer.so.10: cannot open')", {"error": "ImportError: libnvinfer.so.10: cannot open"}),
        ("import os\nos.abort()", {"error": "Python died with exit code -6"}),
        ("import time\ntime.sleep(60)", {"error": "no answer within 2 s"}),
    ],
)
def test_library_that_fails_to_load_is_reported(source, expected, tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    result = machine.probe("tensorrt", timeout=2)
    assert {name: result[name] for name in expected} == expected


def test_probe_without_child_process_runs_in_this_one(tmp_path, monkeypatch):
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.3.0'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(machine, "run", lambda *_, timeout: (machine.NO_COMMAND, ""))
    try:
        assert machine.probe("tensorrt")["version"] == "10.3.0"
    finally:
        sys.modules.pop("tensorrt", None)


FAKE = """
__version__ = "1.20"
def get_available_providers():
    return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
class InferenceSession:
    def __init__(self, graph, providers, enable_fallback):
        self.providers = providers
        BODY
    def get_providers(self):
        return self.providers
    def run(self, names, inputs):
        return [inputs["x"] * 2]
"""
FALLS_BACK = "self.providers = ['CPUExecutionProvider']"
NO_KERNEL = (
    "if len(providers) > 1: raise RuntimeError('CUDA failure 209: no kernel image is available for execution on the "
    "device ; GPU=0 ; file=x.cu')"
)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (FALLS_BACK, "the session does not use it"),
        (NO_KERNEL, "CUDA failure 209: no kernel image is available for execution on the device"),
        ("pass", None),
    ],
)
def test_provider_counts_only_if_it_runs_a_graph(body, reason, tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text(FAKE.replace("BODY", body))
    monkeypatch.syspath_prepend(tmp_path)
    result = machine.probe("onnxruntime")
    if reason is None:
        assert result["runs"] == ["CPUExecutionProvider", "CUDAExecutionProvider"]
    else:
        assert result["runs"] == ["CPUExecutionProvider"]
        assert result["reasons"] == {"CUDAExecutionProvider": reason}


def test_provider_whose_library_does_not_load_is_reported(tmp_path, monkeypatch):
    package = tmp_path / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE.replace("BODY", "pass"))
    for name in ("shared", "cuda"):
        (package / "capi" / f"libonnxruntime_providers_{name}.so").write_text("not a library")
    monkeypatch.syspath_prepend(tmp_path)
    result = machine.probe("onnxruntime")
    assert result["runs"] == ["CPUExecutionProvider"]
    assert "CUDAExecutionProvider does not load: " in result["reasons"]["CUDAExecutionProvider"]


def test_empty_onnxruntime_module_is_reported(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "onnxruntime" / "__init__.py").write_text("")
    assert "has no attribute 'get_available_providers'" in machine.probe("onnxruntime")["error"]


def test_onnxruntime_runs_the_probe_graph():
    result = here().probe("onnxruntime")
    assert "CPUExecutionProvider" in result["runs"]
    assert result["version"]


def test_probe_graph_is_valid_onnx(needs_torch):
    onnx = pytest.importorskip("onnx", reason="torch is not installed: a device needs none, nor onnx")
    model = onnx.load_model_from_string(probes.GRAPH)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Add"]


def test_cache_folder_is_reported_before_it_exists(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        result = machine.probe("cache")
        assert (result["folder"], result["writable"]) == (str(tmp_path / "edge-attn"), True)
        assert result["free"] > 0
        (tmp_path / "edge-attn" / "engines").mkdir(parents=True, exist_ok=True)


def test_missing_home_folder_names_the_options(monkeypatch):
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    error = probes.cache()["error"]
    assert "--cache-dir" in error
    assert "XDG_CACHE_HOME" in error
