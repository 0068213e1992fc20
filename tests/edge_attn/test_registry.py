"""Every row of every table resolves, a wrong name is answered with the right ones, a stranger's module is not ours."""

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
def test_a_row_resolves(table, name):
    assert resolve("row", OURS[table], name) is not None


@pytest.mark.parametrize("name", DEVICE)
def test_a_verb_of_the_device_side_resolves(name):
    if name == "optimize":
        pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")
    assert callable(resolve("verb", DEVICE, name))


def test_every_runtime_and_target_serves_known_precisions():
    assert registry.RUNTIME_PRECISIONS.keys() == registry.RUNTIMES.keys()
    assert all(set(served) <= set(registry.PRECISIONS) for served in registry.RUNTIME_PRECISIONS.values())
    pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")
    for name in registry.TARGETS:
        assert resolve("target", registry.TARGETS, name).precisions == registry.RUNTIME_PRECISIONS[name]


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="unknown tokenizer 'bytes'; known: characters, sentencepiece, words"):
        resolve("tokenizer", registry.TOKENIZERS, "bytes")


def forget(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Lets modules be imported anew; afterwards those of before are back, in their packages too."""
    for name in [name for name in sys.modules if name.startswith(packages)]:
        parent, _, child = name.rpartition(".")
        monkeypatch.setattr(sys.modules[parent], child, sys.modules[name])
    for name in [name for name in sys.modules if name.startswith(packages)]:
        monkeypatch.delitem(sys.modules, name)


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    forget(monkeypatch, "edge_attn.runtimes.ort.cpu")
    with pytest.raises(MissingExtraError, match=r"pip install 'edge-attn\[cpu\]'") as caught:
        resolve("runtime", {"ort-cpu": "edge_attn.runtimes.ort.cpu:OrtCpu"}, "ort-cpu")
    assert caught.value.exit_code == 3


def test_what_optimize_lacks_is_named_by_its_own_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    forget(monkeypatch, "edge_attn.runtimes.optimize", "edge_attn.runtimes.onnx_graph")
    with pytest.raises(MissingExtraError, match=r"pip install 'edge-attn\[optimize\]'"):
        resolve("verb", registry.VERBS, "optimize")


def test_a_fault_of_ours_stays_a_fault():
    with pytest.raises(ModuleNotFoundError):
        resolve("row", {"a": "edge_attn.nothing:a"}, "a")


def test_tables_cost_nothing_and_need_no_import_of_another():
    """A bare interpreter, where nothing imported importlib.util by chance."""
    code = (
        f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import edge_attn.registry as r\n"
        "r.resolve('tokenizer', r.TOKENIZERS, 'words')\n"
        "print(*(name for name in ('torch', 'onnx', 'onnxruntime', 'sentencepiece', 'numpy') if name in sys.modules))"
    )
    # -S leaves out site-packages, and with it every package of others.
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr
