"""Ops that a version of TensorRT cannot read are refused before anything is built, by node and module."""

from __future__ import annotations

from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")


from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import InputError, UsageError
from edge_attn.runtimes.onnx_graph import SCOPES, load
from edge_attn.runtimes.optimize.inline import inline
from edge_attn.runtimes.optimize.trt_operators import OLDEST, check, version

DATA = Path(__file__).parents[2] / "data"
BUNDLES = [DATA / "toy-bundle.zip", *sorted((DATA / "kinds").glob("*.zip"))]


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.stem)
def test_oldest_version_reads_our_graphs(path):
    bundle = Bundle.open(path)
    for name, spec in bundle.manifest.graphs.items():
        model = load(bundle.read(spec.file), name)
        check(name, model, OLDEST)
        check(name, inline(model), OLDEST)


def a_model(body: str, opset: int = 18, more: str = "") -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : {opset}, "edge_attn" : 1]> g (float[n, 4] x, int64[k] i) => (float y)'
    return onnx.parser.parse_model(f"{text} {{ {body} }}\n{more}")


REFUSED = {
    "sized by values": ("z = NonZero (x)", 18, "the size of its output depends on values"),
    "never read": ("z = MatMulInteger (x, x)", 18, "TensorRT 10.3 does not read this op$"),
    "read later": ("z = Attention (x, x, x)", 20, "version 10.14 is the first; see --min-version"),
    "opset": ("z = Exp (x)", 23, r"has opset 23, TensorRT 10.3 reads up to 20; export it at a lower opset"),
    "axes": ("z = Unsqueeze (x, i)", 18, "its input 'i' must be constant"),
    "sum": ("z = ReduceSum (x, i)", 18, "its input 'i' must be constant"),
    "k": ("k = Constant <value_ints = [4000]> () z, w = TopK (x, k)", 18, "k must be less than 3840, got 4000"),
    "layout": ("z = GRU <layout = 1, hidden_size = 2> (x, x, x)", 18, "layout must be 0"),
    "unknown op": (
        "z = edge_attn.Unknown (x)",
        18,
        "edge_attn::Unknown has neither a body in the graph nor a plugin",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_op_that_cannot_be_read_is_refused(what):
    body, opset, sentence = REFUSED[what]
    with pytest.raises(InputError, match=f"the graph g.*{sentence}"):
        check("g", a_model(body, opset), OLDEST)


def test_newer_version_reads_more():
    check("g", a_model("z = Attention (x, x, x)", 23), version("10.14"))
    check("g", a_model("z = edge_attn.Unknown (x)"), OLDEST, {"Unknown"})


BODY = '<domain: "edge_attn", opset_import: ["" : 18]> Counts (x) => (y) { y = NonZero (x) }'


def test_error_names_the_node_and_the_module_of_the_call():
    model = a_model("z = edge_attn.Counts (x)", more=BODY)
    model.graph.node[0].metadata_props.add(key=SCOPES, value="['', 'model.decoder', 'counts']")
    with pytest.raises(InputError, match=r"the graph g: NonZero 'y' of the module model\.decoder: the size"):
        check("g", model, OLDEST)
    check("g", model, OLDEST, {"Counts"})


def test_op_inside_a_branch_is_refused():
    branches = "then_branch = a () => (float p) { p = NonZero (x) }, else_branch = b () => (float q) { q = Exp (x) }"
    with pytest.raises(InputError, match="NonZero 'p'"):
        check("g", a_model(f"c = Constant <value_int = 1> () z = If (c) <{branches}>"), OLDEST)


@pytest.mark.parametrize("text", ["", "ten", "10", "10.3a", "10.3-1", "1.2.3.4.5"])
def test_text_that_is_no_version_is_usage(text):
    with pytest.raises(UsageError, match="a version is two to four numbers"):
        version(text)


def test_older_version_is_not_supported():
    assert version("10.16.1.11") == (10, 16, 1, 11)
    with pytest.raises(UsageError, match=r"oldest supported version of TensorRT is 10\.3, got 8\.6"):
        version("8.6")
