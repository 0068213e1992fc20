"""Tests of the registry: every row resolves, and errors list the known names or the missing extra."""

from __future__ import annotations

import subprocess
import sys

import pytest
from paths import PACKAGE

from edge_attn import registry
from edge_attn.errors import MissingExtraError, UsageError
from edge_attn.registry import resolve

OURS = {"ATTENTIONS": registry.ATTENTIONS, "FAMILIES": registry.FAMILIES, "OPS": registry.OPS}
OURS["TOKENIZERS"] = registry.TOKENIZERS
DEVICE = {name: where for name, where in registry.VERBS.items() if where.startswith("edge_attn.runtimes.")}


@pytest.mark.parametrize(("table", "name"), [(t, n) for t, rows in OURS.items() for n in rows])
def test_row_resolves(table, name):
    if OURS[table][name].startswith("edge_attn.models."):
        pytest.importorskip("torch", reason="torch is not installed: a device needs none")
    assert resolve("row", OURS[table], name) is not None


@pytest.mark.parametrize("name", DEVICE)
def test_device_verb_resolves(name):
    if name == "optimize":
        pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")
    assert callable(resolve("verb", DEVICE, name))


def test_runtimes_and_targets_have_known_precisions():
    assert registry.RUNTIME_PRECISIONS.keys() == registry.RUNTIMES.keys()
    assert all(set(served) <= set(registry.PRECISIONS) for served in registry.RUNTIME_PRECISIONS.values())
    pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")
    for name in registry.TARGETS:
        assert resolve("target", registry.TARGETS, name).precisions == registry.RUNTIME_PRECISIONS[name]


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match="unknown tokenizer 'bytes'; known: characters, sentencepiece, words"):
        resolve("tokenizer", registry.TOKENIZERS, "bytes")


def forget(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Remove modules, so that the test imports them again; restore them afterwards."""
    for name in [name for name in sys.modules if name.startswith(packages)]:
        parent, _, child = name.rpartition(".")
        monkeypatch.setattr(sys.modules[parent], child, sys.modules[name])
    for name in [name for name in sys.modules if name.startswith(packages)]:
        monkeypatch.delitem(sys.modules, name)


def test_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    forget(monkeypatch, "edge_attn.runtimes.ort.cpu")
    with pytest.raises(MissingExtraError, match=r"pip install 'edge-attn\[cpu\]'") as caught:
        resolve("runtime", {"ort-cpu": "edge_attn.runtimes.ort.cpu:OrtCpu"}, "ort-cpu")
    assert caught.value.exit_code == 3


def test_missing_onnx_names_the_extra_optimize(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    forget(monkeypatch, "edge_attn.runtimes.optimize", "edge_attn.runtimes.onnx_graph")
    with pytest.raises(MissingExtraError, match=r"pip install 'edge-attn\[optimize\]'"):
        resolve("verb", registry.VERBS, "optimize")


def test_missing_module_of_ours_is_not_a_missing_extra():
    with pytest.raises(ModuleNotFoundError):
        resolve("row", {"a": "edge_attn.nothing:a"}, "a")


def test_registry_imports_only_the_standard_library():
    """Use a bare interpreter, in which no other module has imported importlib.util."""
    code = (
        f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import edge_attn.registry as r\n"
        "r.resolve('tokenizer', r.TOKENIZERS, 'words')\n"
        "print(*(name for name in ('torch', 'onnx', 'onnxruntime', 'sentencepiece', 'numpy') if name in sys.modules))"
    )
    # -S removes site-packages from the path.
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr
