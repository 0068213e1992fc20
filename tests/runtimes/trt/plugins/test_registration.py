"""TensorRT registers, describes and launches the plugin through its real bindings and plugin registry, without a GPU.

A GPU must still show that TensorRT times the kernel, stores it in an engine and calls it with these arguments.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import TESTS

from edge_attn.errors import NotTestedError, UsageError
from edge_attn.runtimes.trt.api import Capability, TensorRT
from edge_attn.runtimes.trt.plugins import plugins_for
from edge_attn.runtimes.trt.plugins.additive_attention import BLOCKS, KERNELS, PLUGIN, plugin_hash, ptx, register
from edge_attn.runtimes.trt.plugins.ptx import compilers

HERE = TESTS / "support" / "plugins"
VARIABLE = "EDGE_ATTN_TRT_LEAN"
GET = (
    f"pip install --no-deps --only-binary=:all: --target FOLDER tensorrt-cu13-bindings==11.4.0.106 "
    f"tensorrt-lean-cu13-libs==11.4.0.106, and FOLDER in {VARIABLE}"
)
LEAN_HAS = ("createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL", "getPluginRegistry")
"""Functions of the lean library, which the stubs must not replace."""
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
PACKAGE = {
    "tensorrt": "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n",
    "tensorrt/plugin": "from tensorrt_bindings.plugin import *\n",
}
"""Modules that `pip install tensorrt` adds to the bindings, and that no wheel contains."""
FOLDERS = [Path(name) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]

needs_compiler = pytest.mark.skipif(not any(compilers()), reason="needs nvcc or NVRTC")


@pytest.fixture(scope="module", params=FOLDERS or [None], ids=lambda folder: folder.name if folder else "none")
def lean(request, tmp_path_factory) -> tuple[Path, Path]:
    """Folder with the bindings and the lean library, and one with stubs for the missing libraries."""
    folder = request.param
    if folder is None:
        pytest.skip(f"needs the bindings of TensorRT: {GET}")
    (library,) = (folder / "tensorrt_lean_libs").glob("libnvinfer_lean.so.*")
    stubs = tmp_path_factory.mktemp("stubs")
    for package, names in PACKAGE.items():
        (stubs / package).mkdir()
        (stubs / package / "__init__.py").write_text(names, encoding="utf-8")
    hidden = [f"-D{name}=no_{name}" for name in LEAN_HAS]
    for name in LIBRARIES:
        stub = stubs / f"{name}{library.name.removeprefix('libnvinfer_lean')}"
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{stub.name}", *hidden, str(HERE.parent / "trt_stubs.c")]
        command += ["-Wl,--no-as-needed", str(library), f"-Wl,-rpath,{library.parent}"]
        subprocess.run([*command, "-o", str(stub)], check=True, timeout=60)
    return folder, stubs


def ask(lean: tuple[Path, Path], *arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}\nimport runpy\nrunpy.run_path({str(HERE / 'ask_tensorrt.py')!r}, run_name='__main__')"
    run = [sys.executable, "-W", "ignore", "-c", code, *map(str, (*lean, *arguments))]
    return subprocess.run(run, capture_output=True, text=True, timeout=120)


TYPES = {"fp32": "DataType.FLOAT", "fp16": "DataType.HALF"}


@needs_compiler
@pytest.mark.parametrize("precision", KERNELS)
def test_tensorrt_registers_describes_and_launches_the_plugin(lean, precision):
    batch, tgt, src, attn, value = 2, 5, 7, 16, 24
    done = ask(lean, precision, batch, tgt, src, attn, value, BLOCKS[1])
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["class"] == "_TemplateAOTPlugin"
    assert answers["output types"] == [TYPES[precision]] * 2
    assert answers["output shapes"] == [[batch, tgt, value], [batch, tgt, src]]
    floats = [[TYPES[kind]] * 3 + ["DataType.BOOL"] + [TYPES[kind]] * 3 for kind in KERNELS]
    assert answers["supported"] == [[kind, "TensorFormat.LINEAR"] for kinds in floats for kind in kinds]
    assert answers["tactics"] == sorted(BLOCKS)
    ones = dict.fromkeys(("grid_y", "grid_z", "block_y", "block_z"), 1)
    assert answers["launch"] == {"grid_x": batch * tgt, "block_x": BLOCKS[1], "shared_mem": 0, **ones}
    assert answers["sizes"] == [tgt, src, attn, value]
    assert answers["kernel"] == KERNELS[precision]
    assert ".target sm_87" in answers["ptx"], "PTX is of the architecture that was registered last"
    assert any(f".entry {KERNELS[precision]}(" in line for line in answers["ptx"])


UNTYPED = "lambda plugin, function, returns: (function.__annotations__.clear(), function)[1]"
BROKEN = {
    "a signature without types": ("_typed", UNTYPED, "does not have a type annotation"),
    "an unknown type": ("TYPES", repr(", ".join(["FP32"] * 6 + ["FP33"])), "FP33"),
    "an output too few": ("TYPES", repr(", ".join(["FP32"] * 6)), "index out of range"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_tensorrt_refuses_a_wrong_plugin(lean, what):
    name, wrong, reason = BROKEN[what]
    before = "import edge_attn.runtimes.trt.plugins.additive_attention as a; "
    before += f"a.{name} = {wrong}; a.ptx = lambda architecture: b''"
    done = ask(lean, "fp32", 1, 1, 2, 2, 2, 64, before=before)
    assert done.returncode != 0
    assert reason in done.stderr


# ---- without TensorRT


@pytest.mark.parametrize(
    "capability", [Capability((10, 3, 0)), Capability((1, 7, 1, 116), rtx=True)], ids=["10.3", "rtx"]
)
def test_tensorrt_without_plugins_is_refused(capability):
    with pytest.raises(NotTestedError, match=r"takes no ahead-of-time plugin, expected TensorRT 10\.13 or newer"):
        register(TensorRT(SimpleNamespace(), capability, "tensorrt x"), "sm_87")


def test_plugin_package_that_does_not_load_is_a_sentence(monkeypatch):
    monkeypatch.setattr("edge_attn.runtimes.trt.plugins.additive_attention.ptx", lambda architecture: b"")
    tensorrt = TensorRT(SimpleNamespace(__name__="tensorrt_without"), Capability((10, 13, 2)), "tensorrt 10.13.2")
    with pytest.raises(NotTestedError, match=r"the plugins of tensorrt 10\.13\.2 do not load here: No module named"):
        register(tensorrt, "sm_87")


def test_plugins_for_returns_the_plugin_of_an_op():
    assert plugins_for("trt", []) == {}
    assert plugins_for("trt", ["AdditiveAttention"]) == {"AdditiveAttention": PLUGIN}


@pytest.mark.parametrize(("target", "known"), [("trt", "known: AdditiveAttention"), ("ort-cuda", "known: none")])
def test_unknown_plugin_is_a_sentence(target, known):
    with pytest.raises(UsageError, match=f"there is no plugin 'Gru' for the target '{target}'; {known}"):
        plugins_for(target, ["Gru"])


def test_hash_changes_with_the_kernel(monkeypatch, tmp_path):
    before = plugin_hash()
    assert len(before) == 64
    assert before == PLUGIN.hash()
    module = sys.modules[register.__module__]
    changed = tmp_path / module.SOURCE.name
    shutil.copy(module.SOURCE, changed)
    monkeypatch.setattr(module, "SOURCE", changed)
    assert plugin_hash() == before
    changed.write_text(changed.read_text(encoding="utf-8") + "//", encoding="utf-8")
    assert plugin_hash() != before


@needs_compiler
def test_ptx_is_compiled_once():
    assert ptx("sm_87") is ptx("sm_87")
