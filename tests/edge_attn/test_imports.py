"""What is loaded when: a promise about imports is a test."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

VERBS = (
    *("train", "export", "translate", "verify", "evaluate", "inspect", "demo", "score", "align", "optimize"),
    *("doctor", "cache"),
)
HEAVY = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "sentencepiece", "sacrebleu", "tqdm")


def loaded(code: str, *names: str) -> list[str]:
    """Which of `names` a fresh interpreter has loaded after `code`."""
    code += f"\nimport sys; print(*(name for name in {names!r} if name in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stderr.split()


def test_importing_edge_attn_loads_nothing_heavy():
    assert loaded("import edge_attn", "click", "numpy", *HEAVY) == []


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_loads_nothing_heavy(verb):
    code = f"from edge_attn.cli import cli\ncli({[*([verb] if verb else []), '--help']!r}, standalone_mode=False)"
    assert loaded(code, "numpy", *HEAVY) == []


def test_the_alarm_of_this_test_rings():
    assert loaded("import numpy", "numpy", *HEAVY) == ["numpy"]


WITHOUT = """
import sys
for name in ("torch", "onnx", "onnxscript", "safetensors"):
    sys.modules[name] = None  # importing it now raises
"""


def run_without(code: str) -> str:
    run = [sys.executable, "-I", "-c", WITHOUT + code]
    return subprocess.run(run, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_bundle_is_loaded_and_translates_without_torch_and_onnx(toy_bundle):
    code = f"import edge_attn; print(edge_attn.load({str(toy_bundle)!r}).translate(['the red king'])[0].text)"
    assert run_without(code) == "le roi rouge\n"


def test_every_module_of_the_device_side_loads_without_torch_and_onnx():
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
def test_nothing_is_reported_to_anyone(toy_bundle, tmp_path, module):
    """ONNX Runtime would put a name for this device into the user's cache, and send it with what it is asked to run."""
    if module == "edge_attn.export.checks":
        pytest.importorskip("torch", reason="needs torch")
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    code = f"import {module}, edge_attn; edge_attn.load({str(toy_bundle)!r}).translate(['the red king'])"
    subprocess.run([sys.executable, "-I", "-c", code], env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []
