"""What TensorRT would silently do otherwise is said, on TensorRT-RTX's own parser; and what it refuses, by name."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import InputError
from edge_attn.runtimes.trt.api import Capability, TensorRT, load_tensorrt
from edge_attn.runtimes.trt.builder import BuildConfig, build_engine
from edge_attn.runtimes.trt.lint import lint_plugins
from edge_attn.runtimes.trt.profiles import Buckets, Profile
from edge_attn.spec import GraphSpec, TensorSpec

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs none")
parser = pytest.importorskip("onnx.parser")
module_paths = pytest.importorskip("edge_attn.runtimes.onnx_graph").module_paths
pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install edge-attn[trt-rtx]")
pytestmark = pytest.mark.rtx

DOOR = load_tensorrt(rtx=True)
X = TensorSpec("x", "float32", ("batch", 4))
Y = TensorSpec("y", "float32", ("batch", 4))
PROFILE = Profile({"batch": (1, 2, 8), "src": (1, 16, 32)})


def build(text: str, inputs=(X,), outputs=(Y,), plugins=(), tensorrt: TensorRT = DOOR) -> bytes:
    model = parser.parse_model(text).SerializeToString()
    spec = GraphSpec("graphs/test.onnx", inputs, outputs)
    return build_engine(tensorrt, model, spec, [PROFILE], BuildConfig(), lambda share, what: None, plugins)


def graph(body: str, head: str = "float[batch,4] x", gives: str = "float[batch,4] y", opset: int = 18) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}, "edge_attn" : 1, "other" : 1]>
    g ({head}) => ({gives}) {{ {body} }}"""


def function(name: str, op: str, domain: str = "edge_attn") -> str:
    return f"""
    <domain: "{domain}", opset_import: ["" : 18]> {name} (a) => (b) {{ b = {op}(a) }}"""


REFUSED = [
    (
        graph("y = Add(x, z)", "float[batch,4] x, float[4] z"),
        "the input z is float32 of rank 1, expected no such one",
    ),
    (graph("y = Abs(x) z = Tanh(x)", gives="float[batch,4] y, float[batch,4] z"), "the output z is float32 of rank 2"),
    (graph("y = Cast<to = 10>(x)", gives="float16[batch,4] y"), "the output y is float16 of rank 2, expected float32"),
    (graph("t = Tanh(x) z = Abs(t)", gives="float[batch,4] z"), "the output y is absent, expected float32 of rank 2"),
    (graph("t = NonZero(x) y = Cast<to = 1>(t)"), "NonZero '"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_would_go_wrong_in_silence_is_refused(text, said):
    with pytest.raises(InputError, match=rf"graphs/test.onnx cannot be built with tensorrt-rtx.*{re.escape(said)}"):
        build(text)


def test_what_is_well_is_built():
    assert build(graph("y = edge_attn.Ours(x)") + function("Ours", "Tanh"))


def test_an_input_that_feeds_no_layer_is_refused():
    z = TensorSpec("z", "float32", ("batch",))
    with pytest.raises(InputError, match="the input z feeds no layer, so what it says would be ignored"):
        build(graph("y = Tanh(x)", "float[batch,4] x, float[batch] z"), inputs=(X, z))


def test_an_input_that_decides_a_shape_is_refused():
    n = TensorSpec("n", "int64", (2,))
    with pytest.raises(InputError, match="the input n decides a shape, so it would have to stay on the host"):
        build(graph("y = Expand(x, n)", "float[batch,4] x, int64[2] n", "float[p,q] y"), inputs=(X, n))


def loop(condition: str) -> str:
    """A loop of twenty trips whose scan output is `ys`."""
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


def test_a_loop_that_may_end_early_is_refused():
    scalar, scanned = TensorSpec("y", "float32", ()), TensorSpec("ys", "float32", (20,))
    inputs = (TensorSpec("x", "float32", ()),)
    with pytest.raises(InputError, match="the loop of ys may end early, and TensorRT gives that output the length"):
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


def test_attention_in_fp32_needs_the_mark_that_makes_it_decomposable():
    """The known limit: where the capability is not used, the builder refuses. If this fails, the mark may go."""
    inputs = tuple(TensorSpec(name, "float32", ("batch", 2, "src", 16)) for name in "qkv")
    old = TensorRT(DOOR.trt, Capability((10, 13)), DOOR.name)
    with pytest.raises(InputError, match=r"Attention operation was not supported by a dedicated kernel|decomposable"):
        build(attention("float"), inputs, (TensorSpec("y", "float32", ("batch", 2, "src", 16)),), tensorrt=old)


# ---- what the parser refuses


def test_an_op_that_cannot_be_parsed_is_named_with_its_module(toy_bundle: Path):
    opened = Bundle.open(toy_bundle)
    spec = opened.manifest.graphs["step"]
    model = onnx.load_model_from_string(opened.read(spec.file))
    node = next(node for node in model.graph.node if node.name == "node_embedding")
    node.op_type = "Unique"
    profiles = Buckets().profiles(spec, opened.manifest.max_source)
    data, modules = model.SerializeToString(), module_paths(model)
    with pytest.raises(InputError, match=r"Unique 'node_embedding' of model.embedding: "):
        build_engine(DOOR, data, spec, profiles, BuildConfig(), lambda share, what: None, modules=modules)
    with pytest.raises(InputError, match=r"Unique 'node_embedding': "):
        build_engine(DOOR, data, spec, profiles, BuildConfig(), lambda share, what: None)


def test_an_op_inside_a_function_is_named_with_the_call():
    text = graph("y = edge_attn.Ours(x)") + function("Ours", "Unique")
    with pytest.raises(InputError, match=r"Unique '', inside node_of_y \(Ours\): this version does not have it"):
        build(text)


def test_the_call_of_a_function_says_which_module_it_came_from(toy_bundle: Path):
    opened = Bundle.open(toy_bundle)
    spec = opened.manifest.graphs["step"]
    model = onnx.load_model_from_string(opened.read(spec.file))
    model.functions[0].node[0].op_type = "Unique"
    profiles = Buckets().profiles(spec, opened.manifest.max_source)
    data, modules = model.SerializeToString(), module_paths(model)
    with pytest.raises(InputError, match=r"Unique '.*', inside .* \(AdditiveAttention\) of model.attention: "):
        build_engine(DOOR, data, spec, profiles, BuildConfig(), lambda share, what: None, modules=modules)


def test_data_that_is_not_onnx_is_refused():
    with pytest.raises(InputError, match=r"cannot be built with tensorrt-rtx .*Failed to parse the ONNX model"):
        build_engine(DOOR, b"no", GraphSpec("g", (), ()), [PROFILE], BuildConfig(), lambda share, what: None)


def test_plugin_that_is_named_like_an_op_of_tensorrt_is_refused():
    parser = SimpleNamespace(supports_operator=lambda op: op == "Softmax")
    assert lint_plugins(parser, ["Ours"]) == []
    assert lint_plugins(parser, ["Ours", "Softmax"]) == ["the op Softmax would be taken for TensorRT's own Softmax"]
