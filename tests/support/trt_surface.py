"""What TensorRT's Python bindings have: each class, its attributes and what each gives, read from the bindings.

    python tests/support/trt_surface.py show MODULE [FOLDER]        one version, as JSON
    python tests/support/trt_surface.py record FOLDER [CLASS ...]   tests/data/tensorrt-surface.json, of every version

FOLDER has a folder for each version, named by it (10.3.0, rtx-1.4.0), with the wheels that `pip install --no-deps
--target` unpacks: tensorrt_bindings, or tensorrt_rtx_bindings with its libraries. The TensorRT-RTX that is installed is
read too. The bindings of TensorRT proper are imported over stub libraries. CLASS is recorded from now on.
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

STUBS = Path(__file__).with_name("trt_stubs.c")
RECORDING = DATA / "tensorrt-surface.json"
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
PLAIN = re.compile(
    r"(int|str|bool|float|None|bytes|object|List|Dict|Tuple|list|dict|tuple|typing|collections|capsule)\b.*"
)
MODULE, PLUGIN = "module", "plugin"
"""The names under which the module itself and `tensorrt.plugin` stand among the classes."""

Surface = dict[str, dict[str, str]]
"""Class, attribute, what it gives: a class, `class X`, `plain` for what is Python's own, `?` for what is not known."""


def surface(module: ModuleType, plugin: ModuleType | None) -> Surface:
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    found: Surface = {MODULE: {name: _of_module(name, value) for name, value in _public(module)}}
    for name, kind in classes.items():
        found[name] = {key: _gives(kind, key, value, classes) for key, value in _public(kind)}
    if plugin is not None:
        described = {name: value for name, value in vars(plugin).items() if isinstance(value, type)}
        found[PLUGIN] = {name: _of_module(name, value) for name, value in _public(plugin)}
        for name, kind in described.items():
            found.setdefault(name, {key: _gives(kind, key, value, described) for key, value in _public(kind)})
    return found


def _public(owner: Any) -> list[tuple[str, Any]]:
    return [(name, inspect.getattr_static(owner, name)) for name in sorted(dir(owner)) if not name.startswith("_")]


def _of_module(name: str, value: Any) -> str:
    if isinstance(value, type):
        return f"class {name}"
    return "?" if callable(value) else "plain"


def _gives(owner: type, name: str, value: Any, classes: dict[str, type]) -> str:
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
    given = re.sub(r"\btensorrt\w*\.tensorrt\w*\.", "", signature.group(1).strip())
    inner = re.fullmatch(r"(?:List|list)\[(\w+)\]", given)
    if inner and inner.group(1) in classes:
        return f"many {inner.group(1)}"
    if given in classes:
        return given
    return "plain" if PLAIN.fullmatch(given) else "?"


def show(module_name: str, folder: str | None) -> tuple[str, Surface]:
    """Version and surface of the bindings in `folder`, or of those that Python finds."""
    if folder is not None:
        sys.path.insert(0, folder)
    if module_name == "tensorrt_bindings" and folder is not None:
        _load_stubs(Path(folder).name.partition(".")[0])
    module = importlib.import_module(module_name)
    plugin = None
    if module_name == "tensorrt_bindings" and importlib.util.find_spec(f"{module_name}.plugin") is not None:
        sys.modules["tensorrt"] = module  # what tensorrt.plugin imports
        plugin = importlib.import_module("tensorrt.plugin")
    return str(module.__version__), surface(module, plugin)


def _load_stubs(major: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in LIBRARIES:
            made = Path(folder, f"{name}.so.{major}")
            subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{made.name}", "-o", made, STUBS], check=True)
            ctypes.CDLL(str(made), ctypes.RTLD_GLOBAL)


def shown(module_name: str, folder: Path | None) -> tuple[str, Surface]:
    """The same, in an interpreter of its own, which two versions cannot share."""
    run = [sys.executable, "-W", "ignore", __file__, "show", module_name, *([] if folder is None else [str(folder)])]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(f"the bindings in {folder} do not import: {done.stderr.strip()}")
    version, found = json.loads(done.stdout.splitlines()[-1])
    product = "tensorrt-rtx" if "rtx" in module_name else "tensorrt"
    return f"{product} {version}", found


def record(surface_forms: dict[str, Surface], kept: set[str]) -> dict[str, Any]:
    """Several versions in one: for each attribute what it gives, then the versions that lack it."""
    classes: dict[str, dict[str, list[str]]] = {}
    for name in sorted(kept):
        attributes = sorted({key for found in surface_forms.values() for key in found.get(name, {})})
        for key in attributes:
            given = [found[name][key] for found in surface_forms.values() if key in found.get(name, {})]
            known = next((text for text in reversed(given) if text != "?"), "?")
            lacking = [version for version, found in surface_forms.items() if key not in found.get(name, {})]
            classes.setdefault(name, {})[key] = [known, *lacking]
    return {"versions": list(surface_forms), "classes": classes}


def text(recording: dict[str, Any]) -> str:
    """JSON with a line an attribute."""
    lines = []
    for name, attributes in recording["classes"].items():
        body = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in attributes.items())
        lines.append(f" {json.dumps(name)}: {{\n{body}\n }}")
    return f'{{"versions": {json.dumps(recording["versions"])},\n"classes": {{\n' + ",\n".join(lines) + "\n}}\n"


def read_all(folder: Path) -> dict[str, Surface]:
    """The surface_forms of every version under `folder`, and of the installed TensorRT-RTX, by `tensorrt 10.3.0`."""
    paths = sorted(folder.iterdir(), key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])
    places = [
        (name, path)
        for name in ("tensorrt_bindings", "tensorrt_rtx_bindings")
        for path in paths
        if (path / name).is_dir()
    ]
    return dict(shown(name, path) for name, path in [*places, ("tensorrt_rtx_bindings", None)])


if __name__ == "__main__":
    if sys.argv[1] == "show":
        print(json.dumps(show(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)))
    else:
        previous = json.loads(RECORDING.read_text(encoding="utf-8")) if RECORDING.is_file() else {"classes": {}}
        kept = {*previous["classes"], *sys.argv[3:]}
        RECORDING.write_text(text(record(read_all(Path(sys.argv[2])), kept)), encoding="utf-8")
