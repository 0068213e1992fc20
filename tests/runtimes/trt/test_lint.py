"""Checks for graphs whose meaning TensorRT would silently change, and errors of its parser, on TensorRT-RTX."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import InputError
from edge_attn.runtimes.trt.api import Capability, TensorRT, load_tensorrt
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.builder import build_engine
from edge_attn.runtimes.trt.lint import lint_plugins
from edge_attn.runtimes.trt.profiles import Buckets, Profile
from edge_attn.spec import GraphSpec, TensorSpec

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")
parser = pytest.importorskip("onnx.parser")
module_paths = pytest.importorskip("edge_attn.runtimes.onnx_graph").module_paths
pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install edge-attn[trt-rtx]")
pytestmark = pytest.mark.rtx

TENSORRT = load_tensorrt(rtx=True)
X = TensorSpec("x", "float32", ("batch", 4))
Y = TensorSpec("y", "float32", ("batch", 4))
PROFILE = Profile({"batch": (1, 2, 8), "src": (1, 16, 32)})


def build(text: str, inputs=(X,), outputs=(Y,), plugins=(), tensorrt: TensorRT = TENSORRT) -> bytes:
    model = parser.parse_model(text).SerializeToString()
    spec = GraphSpec("graphs/test.onnx", inputs, outputs)
    return build_engine(tensorrt, model, spec, [PROFILE], BuildConfig(), lambda share, phase: None, plugins)


def graph(body: str, head: str = "float[batch,4] x", outputs: str = "float[batch,4] y", opset: int = 18) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}, "edge_attn" : 1, "other" : 1]>
    g ({head}) => ({outputs}) {{ {body} }}"""


def function(name: str, op: str, domain: str = "edge_attn") -> str:
    return f"""
    <domain: "{domain}", opset_import: ["" : 18]> {name} (a) => (b) {{ b = {op}(a) }}"""


FAULTY_GRAPHS = [
    (
        graph("y = Add(x, z)", "float[batch,4] x, float[4] z"),
        "the input z is float32 of rank 1, expected none",
    ),
    (
        graph("y = Abs(x) z = Tanh(x)", outputs="float[batch,4] y, float[batch,4] z"),
        "the output z is float32",
    ),
    (
        graph("y = Cast<to = 10>(x)", outputs="float16[batch,4] y"),
        "the output y is float16 of rank 2, expected",
    ),
    (graph("t = Tanh(x) z = Abs(t)", outputs="float[batch,4] z"), "the output y is absent, expected float32 of rank 2"),
    (graph("t = NonZero(x) y = Cast<to = 1>(t)"), "NonZero '"),
]


@pytest.mark.parametrize(("text", "fault"), FAULTY_GRAPHS)
def test_changed_meaning_is_rejected(text, fault):
    with pytest.raises(InputError, match=rf"graphs/test.onnx cannot be built with tensorrt-rtx.*{re.escape(fault)}"):
        build(text)


def test_faultless_graph_is_built():
    assert build(graph("y = edge_attn.Ours(x)") + function("Ours", "Tanh"))


def test_unused_input_is_rejected():
    z = TensorSpec("z", "float32", ("batch",))
    with pytest.raises(InputError, match="the input z is used by no layer, so its value would be ignored"):
        build(graph("y = Tanh(x)", "float[batch,4] x, float[batch] z"), inputs=(X, z))


def test_shape_input_is_rejected():
    n = TensorSpec("n", "int64", (2,))
    with pytest.raises(InputError, match="the input n determines a shape, so it would have to be on the host"):
        build(graph("y = Expand(x, n)", "float[batch,4] x, int64[2] n", "float[p,q] y"), inputs=(X, n))


def loop(condition: str) -> str:
    """Return a graph with a loop of twenty trips and the scan output `ys`."""
    return f"""<ir_version: 8, opset_import: ["" : 18]>
    g (float x) => (float y, float[k] ys) {{
      trip = Constant<value = int64 {{20}}>()
      yes = Constant<value = bool {{1}}>()
      y, ys = Loop (trip, yes, x) <body = b (int64 i, bool c, float s) => (bool d, float t, float z) {{
        t = Tanh(s)
        zero = Constant<value = float {{0.5}}>()
        d = {condition}
        z = Identity(t)
      }}>
    }}"""


def test_early_ending_loop_is_rejected():
    scalar, scanned = TensorSpec("y", "float32", ()), TensorSpec("ys", "float32", (20,))
    inputs = (TensorSpec("x", "float32", ()),)
    with pytest.raises(InputError, match="the loop of ys may end early, and in TensorRT this output has the length"):
        build(loop("Less(t, zero)"), inputs, (scalar, scanned))
    assert build(loop("Identity(c)"), inputs, (scalar, scanned))


def attention(kind: str) -> str:
    tensors = ", ".join(f"{kind}[batch,2,src,16] {name}" for name in "qkv")
    return graph("y = Attention(q, k, v)", tensors, f"{kind}[batch,2,src,16] y", opset=23).replace(
        "ir_version: 8", "ir_version: 10"
    )


@pytest.mark.parametrize(("kind", "dtype"), [("float", "float32"), ("float16", "float16")])
def test_attention_layers_build_in_either_precision(kind, dtype):
    inputs = tuple(TensorSpec(name, dtype, ("batch", 2, "src", 16)) for name in "qkv")
    assert build(attention(kind), inputs, (TensorSpec("y", dtype, ("batch", 2, "src", 16)),))


def test_fp32_attention_must_be_decomposable():
    """A known limit of TensorRT. If this test fails, `mark_attention_decomposable` is no longer needed."""
    inputs = tuple(TensorSpec(name, "float32", ("batch", 2, "src", 16)) for name in "qkv")
    old = TensorRT(TENSORRT.trt, Capability((10, 13)), TENSORRT.name)
    with pytest.raises(InputError, match=r"Attention operation was not supported by a dedicated kernel|decomposable"):
        build(attention("float"), inputs, (TensorSpec("y", "float32", ("batch", 2, "src", 16)),), tensorrt=old)


# ---- errors of the parser


def test_unparsable_op_names_its_module(toy_bundle: Path):
    opened = Bundle.open(toy_bundle)
    spec = opened.manifest.graphs["step"]
    model = onnx.load_model_from_string(opened.read(spec.file))
    node = next(node for node in model.graph.node if node.name == "node_embedding")
    node.op_type = "Unique"
    profiles = Buckets().profiles(spec, opened.manifest.max_source)
    data, modules = model.SerializeToString(), module_paths(model)
    with pytest.raises(InputError, match=r"Unique 'node_embedding' of model.embedding: "):
        build_engine(TENSORRT, data, spec, profiles, BuildConfig(), lambda share, phase: None, modules=modules)
    with pytest.raises(InputError, match=r"Unique 'node_embedding': "):
        build_engine(TENSORRT, data, spec, profiles, BuildConfig(), lambda share, phase: None)


def test_unparsable_op_in_a_function_names_the_call():
    text = graph("y = edge_attn.Ours(x)") + function("Ours", "Unique")
    with pytest.raises(InputError, match=r"Unique '', inside node_of_y \(Ours\): this version does not have it"):
        build(text)


def test_unparsable_op_in_a_function_names_the_module(toy_bundle: Path):
    opened = Bundle.open(toy_bundle)
    spec = opened.manifest.graphs["step"]
    model = onnx.load_model_from_string(opened.read(spec.file))
    model.functions[0].node[0].op_type = "Unique"
    profiles = Buckets().profiles(spec, opened.manifest.max_source)
    data, modules = model.SerializeToString(), module_paths(model)
    with pytest.raises(InputError, match=r"Unique '.*', inside .* \(AdditiveAttention\) of model.attention: "):
        build_engine(TENSORRT, data, spec, profiles, BuildConfig(), lambda share, phase: None, modules=modules)


def test_invalid_onnx_is_rejected():
    with pytest.raises(InputError, match=r"cannot be built with tensorrt-rtx .*Failed to parse the ONNX model"):
        build_engine(TENSORRT, b"no", GraphSpec("g", (), ()), [PROFILE], BuildConfig(), lambda share, phase: None)


def test_plugin_named_like_an_op_of_tensorrt_is_a_fault():
    parser = SimpleNamespace(supports_operator=lambda op: op == "Softmax")
    assert lint_plugins(parser, ["Ours"]) == []
    assert lint_plugins(parser, ["Ours", "Softmax"]) == ["the op Softmax would become TensorRT's own Softmax"]
