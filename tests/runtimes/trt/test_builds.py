"""Builds of our graphs with TensorRT-RTX 1.7 and 1.4 on a CPU, with the profiles of the default buckets.

Known limits of TensorRT are asserted with its own messages, so that a test fails when a limit is gone. 1.7 has the API
of TensorRT 11, 1.4 that of 10.16, and neither has the parser of 10.3. No engine runs here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from paths import EMBEDDED_BUNDLE, KINDS_FOLDER, TESTS

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import NotTestedError
from edge_attn.runtimes.trt.api import load_tensorrt
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.builder import build_engine

onnx_parser = pytest.importorskip(
    "onnx.parser", reason="onnx is not installed, and torch is not installed: a device needs neither"
)
pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install edge-attn[trt-rtx]")
pytestmark = pytest.mark.rtx

RTX_14 = os.environ.get("EDGE_ATTN_TRT_RTX_14", "")
VERSIONS = {"1.7": "", "1.4": RTX_14}
"""Folder of the wheels of each version, empty for the installed one."""
NEEDS_RTX_14 = "needs the wheels of TensorRT-RTX 1.4: see EDGE_ATTN_TRT_RTX_14 in .ci/run"
UNSUPPORTED_BY_RTX_14 = {
    f"{kind} {precision} step"
    for kind in ("coverage-lstm", "keras-additive-gru", "keras-concat-lstm", "keras-dot-gru")
    for precision in ("fp32", "fp16")
}
"""Graphs that call SoftmaxAttention: without a GPU 1.4 fails for them, and for int8. 1.7 builds all of them."""
EMBEDDED = EMBEDDED_BUNDLE
KINDS = sorted(KINDS_FOLDER.glob("*.zip"))


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    if request.param == "1.4" and not RTX_14:
        pytest.skip(NEEDS_RTX_14)
    name: str = request.param
    return name


def build(version: str, *paths: Path) -> dict[str, Any]:
    """Return the engine size, or the error, of each graph."""
    environment = {**os.environ, "PYTHONPATH": VERSIONS[version]} if VERSIONS[version] else None
    run = [sys.executable, str(TESTS / "support" / "rtx_builds.py"), *map(str, paths)]
    process = subprocess.run(run, capture_output=True, text=True, timeout=600, env=environment)
    assert process.returncode == 0, process.stderr
    results: dict[str, Any] = json.loads(process.stdout)
    assert results.pop("version").startswith(f"tensorrt-rtx {version}")
    return results


# ---- supported graphs


@pytest.mark.slow
def test_portable_graphs_build(version, toy_bundle):
    results = build(version, toy_bundle, EMBEDDED)
    assert len(results) == 4
    assert {name: size for name, size in results.items() if not isinstance(size, int)} == {}


@pytest.mark.slow
def test_every_kind_builds_with_rtx_14(tmp_path):
    """tests/test_support_table.py builds them with the installed version."""
    from edge_attn.runtimes.optimize.optimize import optimize  # it imports onnx, which a device may not have

    if not RTX_14:
        pytest.skip(NEEDS_RTX_14)
    copies = []
    for path in KINDS:
        copies.append(tmp_path / path.name)
        shutil.copy(path, copies[-1])
        for precision in ("fp32", "fp16") if copies[1:] else ("fp32", "fp16", "int8"):
            optimize(copies[-1], "trt", precision, threads=1, log=lambda line: None)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda paths: build("1.4", *paths), (copies[::2], copies[1::2]))
    results = {**first, **second}
    assert len(results) == 4 * len(KINDS) + 2
    errors = {name: result for name, result in results.items() if not isinstance(result, int)}
    assert (
        errors.keys() == {f"{KINDS[0].stem} int8 {graph}" for graph in ("encoder", "step")} | UNSUPPORTED_BY_RTX_14
    ), errors
    assert all("catchCudaError" in result for result in errors.values())


# ---- unsupported graphs: the error by version; other versions build the graph

NO_SUCH_OP = "this version does not have it"
HALF_LENGTHS = "ISelectLayer must have `thenInput` and `elseInput` of same types but has Half and Float"
KNOWN_LIMITS: dict[str, dict[str, str]] = {
    "attention fp16": {},
    "attention fp32": {},
    "attention softcap": dict.fromkeys(VERSIONS, "Setting softcap is not supported in TensorRT Attention"),
    "attention scores": dict.fromkeys(VERSIONS, "TensorRT only supports Attention nodes with one output"),
    "dynamic quantize": dict.fromkeys(VERSIONS, NO_SUCH_OP),
    "non-zero": {"1.7": "NonZero plugin creator version 1 was not", "1.4": "catchCudaError"},
    "swish": {"1.4": "Op type Swish is not supported"},
    "int8": {"1.4": "catchCudaError"},
    "gru": {},
    "gru lengths": {},
    "gru fp16": {
        "1.4": "IMatrixMultiplyLayer must have same input types. `A` is of type Float and `B` is of type Half"
    },
    "gru fp16 lengths": dict.fromkeys(VERSIONS, HALF_LENGTHS),
}
ATTENTION = ["batch", 2, "src", 16]
TENSORS = {"float": "float32", "float16": "float16"}


def attention(kind: str, call: str = "y = Attention(q, k, v)", more: str = "") -> tuple[str, Any]:
    inputs = ", ".join(f"{kind}[batch,2,src,16] {name}" for name in "qkv")
    outputs = [["y", TENSORS[kind], ATTENTION]]
    if more:
        outputs.append(["s", TENSORS[kind], ["batch", 2, "src", "src"]])
    text = f'<ir_version: 10, opset_import: ["" : 23]> g ({inputs}) => ({kind}[batch,2,src,16] y{more}) {{ {call} }}'
    return text, {"in": [[name, TENSORS[kind], ATTENTION] for name in "qkv"], "out": outputs}


def single_op_graph(body: str, opset: int = 18) -> tuple[str, Any]:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[batch,4] x) => (float[batch,4] y) {{ {body} }}'
    return text, {"in": [["x", "float32", ["batch", 4]]], "out": [["y", "float32", ["batch", 4]]]}


def gru(kind: str, lengths: bool) -> tuple[str, Any]:
    dtype = TENSORS[kind]
    inputs = [
        ["x", dtype, ["src", "batch", 4]],
        ["w", dtype, [1, 15, 4]],
        ["r", dtype, [1, 15, 5]],
        ["b", dtype, [1, 30]],
    ]
    if lengths:
        inputs.append(["n", "int32", ["batch"]])
    names = {"float32": "float", "float16": "float16", "int32": "int32"}
    declared = ", ".join(f"{names[t]}[{','.join(map(str, shape))}] {name}" for name, t, shape in inputs)
    call = ", ".join(tensor[0] for tensor in inputs)
    text = f"""<ir_version: 8, opset_import: ["" : 18]> g ({declared}) => ({kind}[src,1,batch,5] y) {{
      y = GRU<hidden_size = 5>({call})
    }}"""
    return text, {"in": inputs, "out": [["y", dtype, ["src", 1, "batch", 5]]]}


def models() -> dict[str, tuple[str, Any]]:
    int8 = """s = Constant<value = float {0.1}>() z = Constant<value = int8 {0}>()
      w = Constant<value = int8[4,4] {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>()
      q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) e = DequantizeLinear(w, s, z) y = MatMul(d, e)"""
    return {
        "attention fp16": attention("float16"),
        "attention fp32": attention("float"),
        "attention softcap": attention("float16", "y = Attention<softcap = 2.0>(q, k, v)"),
        "attention scores": attention("float16", "y, a, b, s = Attention(q, k, v)", ", float16[batch,2,src,src] s"),
        "dynamic quantize": single_op_graph("q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)"),
        "non-zero": single_op_graph("n = NonZero(x) y = Cast<to = 1>(n)"),
        "swish": single_op_graph("y = Swish(x)", 24),
        "int8": single_op_graph(int8),
        "gru": gru("float", False),
        "gru lengths": gru("float", True),
        "gru fp16": gru("float16", False),
        "gru fp16 lengths": gru("float16", True),
    }


def test_known_limits_still_exist(version, tmp_path):
    paths = []
    for name, (text, spec) in models().items():
        paths.append(tmp_path / f"{name}.onnx")
        paths[-1].write_bytes(onnx_parser.parse_model(text).SerializeToString())
        paths[-1].with_suffix(".json").write_text(json.dumps(spec), encoding="utf-8")
    results = build(version, *paths)
    assert results.keys() == KNOWN_LIMITS.keys()
    for name, result in results.items():
        limit = KNOWN_LIMITS[name].get(version, "")
        if limit:
            assert isinstance(result, str), f"TensorRT-RTX {version} builds {name} now: remove it from KNOWN_LIMITS"
            assert limit in result, name
        else:
            assert isinstance(result, int), (name, result)


# ---- progress and cancellation with the real builder


def build_encoder(toy_bundle: Path, config: BuildConfig, report: Any) -> bytes:
    bundle = Bundle.open(toy_bundle)
    spec = bundle.manifest.graphs["encoder"]
    profiles = config.buckets.profiles(spec, bundle.manifest.max_source)
    return build_engine(load_tensorrt(rtx=True), bundle.read(spec.file), spec, profiles, config, report)


def test_progress_never_decreases(toy_bundle):
    shares: list[float] = []
    assert build_encoder(toy_bundle, BuildConfig(), lambda share, phase: shares.append(share))
    assert len(shares) > 20
    assert shares == sorted(shares)
    assert 0.5 < shares[-1] <= 1.0


def test_build_is_stopped_at_its_time_limit(toy_bundle):
    calls: list[float] = []
    with pytest.raises(NotTestedError, match="took longer than 1e-06 minutes and was stopped"):
        build_encoder(toy_bundle, BuildConfig(max_build_minutes=1e-6), lambda share, phase: calls.append(share))
    assert build_encoder(toy_bundle, BuildConfig(), lambda share, phase: None)


def test_interruption_stops_the_build(toy_bundle):
    def report(share: float, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_encoder(toy_bundle, BuildConfig(), report)


# ---- the engine cache, in separate processes

FETCH = """
from pathlib import Path
from edge_attn.bundle.bundle import Bundle, Target
from edge_attn.runtimes.trt.cudart import Gpu
from edge_attn.runtimes.trt.engine_cache import EngineCache
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.builder import engine_for
from edge_attn.runtimes.trt.api import load_tensorrt

bundle, cache = Bundle.open({bundle!r}), EngineCache(Path({folder!r}))
gpu = Gpu("Orin", (8, 7), 8, True, 1 << 33, 1 << 33)
ready = Target("trt", "fp32", bundle.manifest.graphs)
log = lambda line: print(line, flush=True)
print(len(engine_for(load_tensorrt(rtx=True), bundle, ready, "encoder", cache, gpu, BuildConfig(), log).engine))
"""


def fetch(folder: Path) -> subprocess.Popen[str]:
    run = [sys.executable, "-c", FETCH.format(bundle=str(EMBEDDED), folder=str(folder))]
    return subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_build_one_engine(tmp_path):
    outputs = [process.communicate(timeout=120) for process in [fetch(tmp_path), fetch(tmp_path)]]
    sizes = {out.splitlines()[-1] for out, _ in outputs}
    assert len(sizes) == 1, outputs
    assert sum(out.count("building the engine") for out, _ in outputs) == 1
    assert len(list(tmp_path.rglob("*.engine"))) == 1


def test_killed_build_leaves_no_engine(tmp_path):
    with fetch(tmp_path) as process:
        assert process.stdout is not None
        assert "building the engine (there is none yet)" in process.stdout.readline()
        process.kill()
    assert not list(tmp_path.rglob("*.engine"))
    with fetch(tmp_path) as process:
        out, error = process.communicate(timeout=120)
    assert "there is none yet" in out, error
    assert len(list(tmp_path.rglob("*.engine"))) == 1
