"""Attributes of the classes of TensorRT's Python bindings, and the types of their values, read from the bindings.

    python tests/support/trt_surface.py show MODULE [FOLDER]        one version, as JSON
    python tests/support/trt_surface.py record FOLDER [CLASS ...]   tests/data/tensorrt-surface.json, of every version

FOLDER contains a folder for each version, named after it (10.3.0, rtx-1.4.0), with wheels unpacked by `pip install
--no-deps --target`: tensorrt_bindings, or tensorrt_rtx_bindings with its libraries. The installed TensorRT-RTX is read
too. The bindings of TensorRT are imported with stub libraries. CLASS is added to the recorded classes.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from paths import DATA

STUB_SOURCE = Path(__file__).with_name("trt_stubs.c")
RECORDING = DATA / "tensorrt-surface.json"
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
PLAIN_TYPE = re.compile(
    r"(int|str|bool|float|None|bytes|object|List|Dict|Tuple|list|dict|tuple|typing|collections|capsule)\b.*"
)
MODULE, PLUGIN = "module", "plugin"
"""Names of the module itself and of `tensorrt.plugin` among the classes."""

Surface = dict[str, dict[str, str]]
"""Class, attribute, type of its value: a class, `class X`, `plain` for Python types, `?` if it is unknown."""


def surface(module: ModuleType, plugin: ModuleType | None) -> Surface:
    """Return the surface of a module of bindings, and of its `plugin`."""
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    result: Surface = {MODULE: {name: _of_module(name, value) for name, value in _public(module)}}
    for name, kind in classes.items():
        result[name] = {key: _value_type(kind, key, value, classes) for key, value in _public(kind)}
    if plugin is not None:
        described = {name: value for name, value in vars(plugin).items() if isinstance(value, type)}
        result[PLUGIN] = {name: _of_module(name, value) for name, value in _public(plugin)}
        for name, kind in described.items():
            result.setdefault(name, {key: _value_type(kind, key, value, described) for key, value in _public(kind)})
    return result


def _public(owner: Any) -> list[tuple[str, Any]]:
    return [(name, inspect.getattr_static(owner, name)) for name in sorted(dir(owner)) if not name.startswith("_")]


def _of_module(name: str, value: Any) -> str:
    if isinstance(value, type):
        return f"class {name}"
    return "?" if callable(value) else "plain"


def _value_type(owner: type, name: str, value: Any, classes: dict[str, type]) -> str:
    if isinstance(value, owner):
        return owner.__name__  # a member of an enumeration
    if inspect.isfunction(value) or (isinstance(value, property) and inspect.isfunction(value.fget)):
        annotation = inspect.signature(value.fget if isinstance(value, property) else value).return_annotation
        text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
        return text if text in classes else "?"
    text = (value.fget.__doc__ if isinstance(value, property) else getattr(owner, name).__doc__) or ""
    signature = re.search(r"\) -> (.+)", text)
    if signature is None:
        return "?"
    type_name = re.sub(r"\btensorrt\w*\.tensorrt\w*\.", "", signature.group(1).strip())
    inner = re.fullmatch(r"(?:List|list)\[(\w+)\]", type_name)
    if inner and inner.group(1) in classes:
        return f"many {inner.group(1)}"
    if type_name in classes:
        return type_name
    return "plain" if PLAIN_TYPE.fullmatch(type_name) else "?"


def read_bindings(module_name: str, folder: str | None) -> tuple[str, Surface]:
    """Return version and surface of the bindings in `folder`, or of the installed ones."""
    if folder is not None:
        sys.path.insert(0, folder)
    if module_name == "tensorrt_bindings" and folder is not None:
        _load_stubs(Path(folder).name.partition(".")[0])
    module = importlib.import_module(module_name)
    plugin = None
    if module_name == "tensorrt_bindings" and importlib.util.find_spec(f"{module_name}.plugin") is not None:
        sys.modules["tensorrt"] = module  # imported by tensorrt.plugin
        plugin = importlib.import_module("tensorrt.plugin")
    return str(module.__version__), surface(module, plugin)


def _load_stubs(major: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in LIBRARIES:
            library = Path(folder, f"{name}.so.{major}")
            subprocess.run(
                ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, STUB_SOURCE], check=True
            )
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def read_in_subprocess(module_name: str, folder: Path | None) -> tuple[str, Surface]:
    """Read bindings in a new process, because one process cannot import two versions."""
    run = [sys.executable, "-W", "ignore", __file__, "show", module_name, *([] if folder is None else [str(folder)])]
    process = subprocess.run(run, capture_output=True, text=True, timeout=120)
    if process.returncode != 0:
        raise RuntimeError(f"the bindings in {folder} do not import: {process.stderr.strip()}")
    version, result = json.loads(process.stdout.splitlines()[-1])
    product = "tensorrt-rtx" if "rtx" in module_name else "tensorrt"
    return f"{product} {version}", result


def record(surfaces: dict[str, Surface], class_names: set[str]) -> dict[str, Any]:
    """Merge several versions: for each attribute the type of its value, then the versions without it."""
    classes: dict[str, dict[str, list[str]]] = {}
    for name in sorted(class_names):
        attributes = sorted({key for surface in surfaces.values() for key in surface.get(name, {})})
        for key in attributes:
            types = [surface[name][key] for surface in surfaces.values() if key in surface.get(name, {})]
            known = next((text for text in reversed(types) if text != "?"), "?")
            missing = [version for version, surface in surfaces.items() if key not in surface.get(name, {})]
            classes.setdefault(name, {})[key] = [known, *missing]
    return {"versions": list(surfaces), "classes": classes}


def text(recording: dict[str, Any]) -> str:
    """Return JSON with one line for each attribute."""
    lines = []
    for name, attributes in recording["classes"].items():
        body = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in attributes.items())
        lines.append(f" {json.dumps(name)}: {{\n{body}\n }}")
    return f'{{"versions": {json.dumps(recording["versions"])},\n"classes": {{\n' + ",\n".join(lines) + "\n}}\n"


def read_all(folder: Path) -> dict[str, Surface]:
    """Return the surface of every version under `folder` and of the installed TensorRT-RTX, by `tensorrt 10.3.0`."""
    paths = sorted(folder.iterdir(), key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])
    bindings = [
        (name, path)
        for name in ("tensorrt_bindings", "tensorrt_rtx_bindings")
        for path in paths
        if (path / name).is_dir()
    ]
    return dict(read_in_subprocess(name, path) for name, path in [*bindings, ("tensorrt_rtx_bindings", None)])


if __name__ == "__main__":
    if sys.argv[1] == "show":
        print(json.dumps(read_bindings(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)))
    else:
        previous = json.loads(RECORDING.read_text(encoding="utf-8")) if RECORDING.is_file() else {"classes": {}}
        class_names = {*previous["classes"], *sys.argv[3:]}
        RECORDING.write_text(text(record(read_all(Path(sys.argv[2])), class_names)), encoding="utf-8")
