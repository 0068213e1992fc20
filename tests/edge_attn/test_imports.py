"""Imports stay light: `import edge_attn` and every `--help` load no framework."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edge_attn.cli import cli

COMMANDS = tuple(cli.commands)
HEAVY = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "sentencepiece", "sacrebleu", "tqdm")


def loaded(code: str, *names: str) -> list[str]:
    """Return those of `names` that a new interpreter has loaded after `code`."""
    code += f"\nimport sys; print(*(name for name in {names!r} if name in sys.modules), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return result.stderr.split()


def test_importing_edge_attn_loads_nothing_heavy():
    assert loaded("import edge_attn", "click", "numpy", *HEAVY) == []


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command):
    code = f"from edge_attn.cli import cli\ncli({[*([command] if command else []), '--help']!r}, standalone_mode=False)"
    assert loaded(code, "numpy", *HEAVY) == []


def test_loaded_reports_a_heavy_module():
    assert loaded("import numpy", "numpy", *HEAVY) == ["numpy"]


WITHOUT = """
import sys
for name in ("torch", "onnx", "onnxscript", "safetensors"):
    sys.modules[name] = None  # importing it now raises
"""


def run_without(code: str) -> str:
    run = [sys.executable, "-I", "-c", WITHOUT + code]
    return subprocess.run(run, capture_output=True, text=True, check=True, timeout=60).stdout


def test_bundle_translates_without_torch_and_onnx(toy_bundle):
    code = f"import edge_attn; print(edge_attn.load({str(toy_bundle)!r}).translate(['the red king'])[0].text)"
    assert run_without(code) == "le roi rouge\n"


def test_device_modules_load_without_torch_and_onnx():
    code = """
import importlib, pathlib, edge_attn
package = pathlib.Path(edge_attn.__file__).parent
folders = ["bundle", "cli", "config", "decoding", "ops", "parity", "storage", "text", "runtimes"]
paths = [path for folder in folders for path in (package / folder).rglob("*.py")]
names = [".".join(("edge_attn", *path.relative_to(package).with_suffix("").parts)) for path in paths]
needs_onnx = ("edge_attn.runtimes.optimize", "edge_attn.runtimes.onnx_graph")  # the extra `optimize`
for name in names:
    if name.startswith(needs_onnx) or name.endswith("__main__"):
        continue
    try:
        importlib.import_module(name.removesuffix(".__init__"))
    except ModuleNotFoundError as error:
        assert (error.name or "").startswith("tensorrt"), error
print(len(names))
"""
    assert int(run_without(code)) > 60


def test_translating_loads_neither_torch_nor_onnx(toy_bundle):
    code = f"import edge_attn; edge_attn.load({str(toy_bundle)!r}).translate(['the red king'])"
    assert loaded(code, "torch", "onnx", "onnxscript", "safetensors", "sacrebleu", "sentencepiece") == []


@pytest.mark.parametrize("module", ["edge_attn", "edge_attn.runtimes.ort.cpu", "edge_attn.export.checks"])
def test_telemetry_of_onnxruntime_is_off(toy_bundle, tmp_path, module):
    """ONNX Runtime would write a device id into the user's cache folder, and send it with usage data."""
    if module == "edge_attn.export.checks":
        pytest.importorskip("torch", reason="needs torch")
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    code = f"import {module}, edge_attn; edge_attn.load({str(toy_bundle)!r}).translate(['the red king'])"
    subprocess.run([sys.executable, "-I", "-c", code], env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []
