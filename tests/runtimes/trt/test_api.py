"""Access to TensorRT, and the attributes of TensorRT that our source uses, in every supported version."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import trt_attributes as attributes
import trt_surface as surface
from paths import PACKAGE

from edge_attn.errors import NotTestedError
from edge_attn.runtimes.trt.api import Capability, TensorRT, load_tensorrt

BINDINGS = os.environ.get("EDGE_ATTN_TRT_BINDINGS", "")
RECORDING: dict[str, Any] = json.loads(surface.RECORDING.read_text(encoding="utf-8"))
API_SOURCE = (PACKAGE / "runtimes" / "trt" / "api.py").read_text(encoding="utf-8")
RECORD_COMMAND = "python tests/support/trt_surface.py record FOLDER CLASS"


# ---- load_tensorrt


def install_module(monkeypatch: pytest.MonkeyPatch, version: str, name: str = "tensorrt") -> None:
    module = ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("10.3.0", (10, 3, 0)), ("10.14.1.48.post1", (10, 14, 1, 48)), ("11.4.0.106", (11, 4, 0, 106))],
)
def test_load_tensorrt_returns_name_and_capability(monkeypatch, version, numbers):
    install_module(monkeypatch, version)
    tensorrt = load_tensorrt()
    assert (tensorrt.name, tensorrt.capability) == (f"tensorrt {version}", Capability(numbers))


def test_load_tensorrt_rtx(monkeypatch):
    install_module(monkeypatch, "1.7.1.116", "tensorrt_rtx_bindings")
    tensorrt = load_tensorrt(rtx=True)
    assert (tensorrt.name, tensorrt.capability) == ("tensorrt-rtx 1.7.1.116", Capability((1, 7, 1, 116), rtx=True))


@pytest.mark.parametrize(
    ("rtx", "command"),
    [
        (False, "on a Jetson it is in the system's Python"),
        (True, r"pip install --only-binary=:all: 'edge-attn\[trt-rtx\]'"),
    ],
)
def test_missing_tensorrt_names_the_next_command(monkeypatch, rtx, command):
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotTestedError, match=command):
        load_tensorrt(rtx)


def test_missing_library_is_reported(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NotTestedError, match=r"does not load here \(tensorrt: libnvinfer.so.10: cannot open"):
        load_tensorrt()


@pytest.mark.parametrize(("version", "message"), [("8.5.2", "too old, expected 10.3"), ("", "has no version")])
def test_unsupported_version_is_rejected(monkeypatch, version, message):
    install_module(monkeypatch, version)
    with pytest.raises(NotTestedError, match=message):
        load_tensorrt()


CAPABILITIES = [  # version, rtx, attention layer, in-place cache, plugin override, AOT plugins, precedence
    ((10, 3, 0), False, False, False, False, False, "function"),
    ((10, 7, 0), False, False, False, False, False, "plugin"),
    ((10, 13, 2, 6), False, False, False, False, True, "plugin"),
    ((10, 14, 1), False, True, False, False, True, "plugin"),
    ((10, 16, 2), False, True, True, True, True, "named plugin"),
    ((11, 4, 0, 106), False, True, True, True, True, "named plugin"),
    ((1, 4, 0, 76), True, True, True, False, False, "function"),
    ((1, 7, 1, 116), True, True, True, False, False, "function"),
]


@pytest.mark.parametrize(("version", "rtx", "attention", "inplace", "override", "aot", "precedence"), CAPABILITIES)
def test_capabilities_of_each_version(version, rtx, attention, inplace, override, aot, precedence):
    capability = Capability(version, rtx)
    assert (capability.attention_layer, capability.inplace_cache, capability.plugin_override) == (
        attention,
        inplace,
        override,
    )
    assert (capability.aot_plugins, capability.function_precedence) == (aot, precedence)


def test_log_drains_its_errors():
    class Severity:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    class ILogger(Severity):
        pass

    log = TensorRT(SimpleNamespace(ILogger=ILogger), Capability((10, 3)), "tensorrt 10.3").log
    for severity, message in ((ILogger.ERROR, "a"), (ILogger.WARNING, "b"), (ILogger.INTERNAL_ERROR, "c")):
        log.log(severity, message)
    assert log.drain_errors() == ["a", "c"]
    assert log.drain_errors() == []


# ---- attributes of TensorRT in our source


def capability_of(version: str) -> Capability:
    product, _, text = version.partition(" ")
    return Capability(tuple(map(int, text.split("."))), rtx=product == "tensorrt-rtx")


def faults(files: dict[str, str]) -> list[str]:
    """Return attributes that a recorded version does not have, and expressions of unknown type."""
    usage = attributes.read(files, RECORDING["classes"], API_SOURCE)
    missing = []
    for access in usage.accesses:
        recorded = RECORDING["classes"].get(access.owner)
        if recorded is None:
            missing.append(f"{access.where}: {access.owner} is not recorded; run: {RECORD_COMMAND}")
            continue
        for version in RECORDING["versions"]:
            capability = capability_of(version)
            if all(getattr(capability, name) == value for name, value in access.guards) and (
                access.attribute not in recorded or version in recorded[access.attribute][1:]
            ):
                missing.append(f"{access.where}: {version} has no {access.owner}.{access.attribute}")
    return usage.unresolved + missing


def test_used_attributes_exist_in_every_version():
    assert faults(attributes.sources(PACKAGE.parent)) == []


def test_reader_detects_our_use_of_tensorrt():
    usage = attributes.read(attributes.sources(PACKAGE.parent), RECORDING["classes"], API_SOURCE)
    used = {(access.owner, access.attribute) for access in usage.accesses}
    assert {
        ("module", "Builder"),
        ("Builder", "create_network"),
        ("INetworkDefinition", "get_layer"),
        ("ITensor", "is_shape_tensor"),
        ("LayerType", "TRIP_LIMIT"),
        ("ILoop", "name"),
        ("IBuilderConfig", "set_memory_pool_limit"),
        ("ParserError", "local_function_stack"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
    } <= used


def test_recording_contains_the_supported_versions():
    names = [".".join(version.split(".")[:2]) for version in RECORDING["versions"]]
    assert names == [
        "tensorrt 10.3",
        "tensorrt 10.13",
        "tensorrt 10.16",
        "tensorrt 11.4",
        "tensorrt-rtx 1.4",
        "tensorrt-rtx 1.7",
    ]


HEAD = "from edge_attn.runtimes.trt.api import Builder, TensorRT, ILayer\n"
FAULTY_SOURCES = [
    ("def f(t: TensorRT): return t.trt.BuilderFlag.FP16", "tensorrt 11.4.0.106 has no BuilderFlag.FP16"),
    ("def f(t: TensorRT):\n trt = t.trt\n return trt.BuilderFlag.FP16", "has no BuilderFlag.FP16"),
    ("def f(t: TensorRT): return t.trt.Nothing", "has no module.Nothing"),
    ("def f(b: Builder): return b.platform_has_fast_fp16", "has no Builder.platform_has_fast_fp16"),
    (
        "def f(t: TensorRT): return t.trt.Builder(1).platform_has_fast_fp16",
        "no Builder.platform_has_fast_fp16",
    ),
    ("def f(b: Builder): return b.create_network(0).get_layer(0).precision", "has no ILayer.precision"),
    ("def f(b: Builder | None): return b.platform_has_fast_fp16", "has no Builder.platform_has_fast_fp16"),
    ("def f(all: list[ILayer]): return [x.precision for x in all]", "has no ILayer.precision"),
    ("def f(all: dict[str, ILayer]): return all['a'].precision", "has no ILayer.precision"),
    ("def f(all: dict[str, ILayer]):\n for k, v in all.items(): v.precision", "has no ILayer.precision"),
    ("def f(a: list[ILayer], b: list[Builder]):\n for x in (a, b):\n  for y in x: y.precision", "what is y?"),
    ("class A:\n x: ILayer\n def f(self): return self.x.precision", "has no ILayer.precision"),
    ("def g() -> ILayer: ...\ndef f(): return g().precision", "has no ILayer.precision"),
    ("def f(t: TensorRT):\n class A(t.trt.IInt8Calibrator): pass", "has no module.IInt8Calibrator"),
    ("def f(b: Builder): return getattr(b, 'platform_has_fast_fp16')", "has no Builder.platform_has_fast_fp16"),
    ("def f(b: Builder, name: str): return getattr(b, name)", "which attribute is that?"),
    ("class A:\n def f(self, b: Builder): self.x = b", "self.x stores an object of TensorRT"),
    ("def f(b: Builder):\n x = {}\n x['a'] = b", "x['a'] stores an object of TensorRT"),
    ("def f(b: Builder):\n x = set()\n x.add(b)", "x stores an object of TensorRT"),
    ("from typing import Any\ndef f(b: Any): return b.create_network()", "what is b?"),
    ("def f(b): return b.create_network()", "what is b?"),
    (
        "def f(t: TensorRT):\n if t.capability.attention_layer: t.trt.BuilderFlag.FP16",
        "11.4.0.106 has no BuilderFlag",
    ),
    (
        "def f(layer: ILayer, t: TensorRT):\n layer.__class__ = t.trt.ILoopOutputLayer\n layer.nothing",
        "ILoopOutputLayer",
    ),
    (
        "def f(layer: ILayer, t: TensorRT):\n layer.__class__ = t.trt.IAttentionInputLayer",
        "10.3.0 has no module.IAtt",
    ),
]


@pytest.mark.parametrize(("source", "fault"), FAULTY_SOURCES)
def test_missing_attribute_is_a_fault(source, fault):
    messages = faults({"faulty.py": HEAD + source})
    assert any(fault in message for message in messages), messages


@pytest.mark.parametrize("attribute", ["trt.BuilderFlag.FP16", "options.int8_calibrator", "builder.platform_has_tf32"])
def test_missing_attribute_in_our_source_is_a_fault(attribute):
    files = attributes.sources(PACKAGE.parent)
    before = files["edge_attn/runtimes/trt/builder.py"]
    files["edge_attn/runtimes/trt/builder.py"] = before.replace("trt.MemoryPoolType.WORKSPACE", attribute)
    assert files["edge_attn/runtimes/trt/builder.py"] != before
    assert any(fault.startswith("edge_attn/runtimes/trt/builder.py") for fault in faults(files))


GUARDED_SOURCES = [
    "def f(t: TensorRT):\n if t.capability.attention_layer: t.trt.IAttentionInputLayer",
    "def f(t: TensorRT):\n if not t.capability.attention_layer: return\n t.trt.IAttentionInputLayer",
    "def f(t: TensorRT, x: bool):\n if t.capability.attention_layer and x: t.trt.IAttentionInputLayer",
    "def f(t: TensorRT):\n if not t.capability.attention_layer:\n  pass\n else:\n  t.trt.IAttentionInputLayer",
    "def f(t: TensorRT): return t.trt.IAttentionInputLayer if t.capability.attention_layer else None",
]


@pytest.mark.parametrize("source", GUARDED_SOURCES)
def test_capability_check_permits_newer_attributes(source):
    assert faults({"guarded.py": HEAD + source}) == []
    assert faults({"guarded.py": HEAD + source.replace("attention_layer", "plugins")}) != []


def test_no_other_file_uses_tensorrt():
    checked = attributes.sources(PACKAGE.parent)
    for path in [path for folder in ("", "export", "runtimes") for path in (PACKAGE / folder).rglob("*.py")]:
        name = path.relative_to(PACKAGE.parent).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(part.partition(".")[0].startswith("tensorrt") for part in imported), (name, imported)
            assert name in checked or not (isinstance(node, ast.Attribute) and node.attr == "trt"), (name, node.lineno)


@pytest.mark.skipif(not BINDINGS, reason="needs the bindings of TensorRT: see EDGE_ATTN_TRT_BINDINGS in .ci/run")
def test_recording_equals_the_real_bindings():
    recording = surface.record(surface.read_all(Path(BINDINGS)), set(RECORDING["classes"]))
    assert recording == RECORDING, f"run: {RECORD_COMMAND}"


def test_recording_names_versions_without_an_attribute():
    recording = surface.record({"a": {"X": {"p": "Y", "q": "?"}}, "b": {"X": {"q": "plain"}}}, {"X"})
    assert recording == {"versions": ["a", "b"], "classes": {"X": {"p": ["Y", "b"], "q": ["plain"]}}}
    assert json.loads(surface.text(recording)) == recording
    assert dataclasses.is_dataclass(TensorRT)
