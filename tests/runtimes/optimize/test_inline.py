"""Inlining leaves standard ops with the same results, and the calls of plugins."""

from __future__ import annotations

import numpy as np
import pytest
from paths import EMBEDDED_BUNDLE

onnx = pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

import onnxruntime as ort

from edge_attn.bundle.bundle import Bundle
from edge_attn.errors import BundleError
from edge_attn.runtimes.onnx_graph import Constants, constant, load, module_path, nodes, prune
from edge_attn.runtimes.optimize.inline import inline, without_bodies

READY = EMBEDDED_BUNDLE


def step(toy_bundle) -> onnx.ModelProto:
    return load(Bundle.open(toy_bundle).read("graphs/step.onnx"), "step")


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)


CLUMSY = """
<ir_version: 10, opset_import: ["" : 18, "d1" : 1, "d2" : 1]>
g (float[n, 3] x) => (float[n, 3] y, float[n, 2] z)
{
  a = d1.Foo (x)
  b = d2.Foo (a)
  w = Constant <value_floats = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]> ()
  shape = Constant <value_ints = [3, 2]> ()
  m = Reshape (w, shape)
  z = Gemm (b, m, "")
  unread = Exp (b)
  like = CastLike (shape, x)
  one = Constant <value_float = 1.0> ()
  two = CastLike (one, x)
  y = Add (b, two)
}
<domain: "d1", opset_import: ["" : 18]> Foo (x) => (y) { y = Tanh (x) }
<domain: "d2", opset_import: ["" : 18]> Foo (x) => (y) { y = Sigmoid (x) }
"""


def test_forms_that_the_oldest_parser_misreads_are_replaced():
    model = onnx.parser.parse_model(CLUMSY)
    result = inline(model)
    onnx.checker.check_model(result, full_check=True)
    assert not result.functions
    assert [entry.domain for entry in result.opset_import] == [""]
    assert {node.op_type for node in result.graph.node} == {"Tanh", "Sigmoid", "Reshape", "Gemm", "Add"}
    assert all(node.name and node.input[-1] for node in result.graph.node)
    assert len({node.name for node in result.graph.node}) == len(result.graph.node)
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    for actual, expected in zip(run(result, x=x), run(model, x=x), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_cast_like_becomes_cast():
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (int64[n] x, float16[n] like) => (float16[n] y)'
        "{ y = CastLike (x, like) }"
    )
    [node] = inline(model).graph.node
    assert (node.op_type, node.attribute[0].i) == ("Cast", onnx.TensorProto.FLOAT16)


def test_import_of_a_used_domain_stays():
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1, "unused" : 1]> g (float[n] x) => (float[n] y)'
        "{ y = com.microsoft.Gelu (x) }"
    )
    result = inline(model)
    onnx.checker.check_model(result)
    assert {entry.domain for entry in result.opset_import} == {"", "com.microsoft"}


def test_constant_has_one_attribute():
    for attributes in ({}, {"value_int": 1, "value_float": 1.0}):
        with pytest.raises(BundleError, match=f"the Constant 'c' has {len(attributes)} attributes, expected 1"):
            constant(onnx.helper.make_node("Constant", [], ["c"], **attributes))


def test_op_of_a_plugin_keeps_its_call_and_loses_its_body(toy_bundle):
    result = inline(step(toy_bundle), frozenset({"AdditiveAttention"}))
    assert [function.name for function in result.functions] == ["AdditiveAttention"]
    onnx.checker.check_model(result)
    bare = without_bodies(result)
    [call] = [node for node in bare.graph.node if node.domain]
    assert not bare.functions
    assert result.functions
    assert call.op_type == "AdditiveAttention"
    assert {entry.name for entry in call.attribute} >= {"plugin_namespace", "plugin_version"}
    assert "edge_attn" in {entry.domain for entry in bare.opset_import}


def test_prune_keeps_what_an_inner_graph_reads():
    model = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 18]>
    g (bool c, float[n] x) => (float[n] y)
    {
      used = Exp (x)
      unused = Log (x)
      y = If (c) <then_branch = a () => (float[n] p) { p = Tanh (used) }, else_branch = b () => (float[n] q) { q = Neg (x) }>
    }
    """)  # noqa: E501
    prune(model)
    assert {node.op_type for node in nodes(model.graph)} == {"Exp", "If", "Tanh", "Neg"}


def test_constants_are_followed_through_transpose_and_cast(toy_bundle):
    model = inline(step(toy_bundle))
    constants = Constants(model)
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    weights_of_products = [constants.get(node.input[1]) for node in products]
    assert sum(value is not None for value in weights_of_products) >= 4
    assert all(value.dtype == np.float32 for value in weights_of_products if value is not None)
    assert constants.get("tokens") is None


def test_module_path_reads_the_metadata_of_the_exporter(toy_bundle):
    paths = {module_path(node) for node in step(toy_bundle).graph.node}
    assert {"model.combine", "model.output", ""} <= paths
    node = onnx.helper.make_node("Exp", ["a"], ["b"])
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', ")
    assert module_path(node) == ""


def test_product_of_weights_is_computed_once():
    """Not every runtime folds it when it loads the graph."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 18]>
        g (int64[n] ids) => (float[n, 2] y)
          <int64[3, 2] table = {1, 2, 3, 4, 5, 6}, float[2, 2] weights = {1, 0.5, -1, 2},
           float[2, 2] swap = {0, 1, 1, 0}>
        {
          wide = Cast <to: int = 1> (table)
          transposed = Transpose (weights)
          doubled = MatMul (wide, transposed)
          products = MatMul (doubled, swap)
          y = Gather <axis: int = 0> (products, ids)
        }
        """
    )
    result = inline(model)
    onnx.checker.check_model(result, full_check=True)
    assert [node.op_type for node in result.graph.node] == ["Gather"]
    (table,) = result.graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(table), [[3, 2], [5, 5], [7, 8]])
    np.testing.assert_array_equal(run(result, ids=np.array([2, 0]))[0], [[7, 8], [3, 2]])


def test_weights_of_wrong_shapes_are_a_sentence():
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[2] x) => (float[2] y) <float[1, 2] a = {1, 2}, float[3, 2] b = {1, 2, 3, 4, 5, 6}>
        { p = MatMul (a, b) \n y = Add (x, p) }
        """
    )
    with pytest.raises(BundleError, match=r"'p' multiplies weights of \(1, 2\) and \(3, 2\)"):
        inline(model)


@pytest.mark.parametrize("name", ["encoder", "step"])
def test_embedded_graphs_multiply_no_weights_alone(name):
    model = inline(load(Bundle.open(READY).read(f"graphs/{name}.onnx"), name))
    constants = Constants(model)
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert products
    assert not [node.name for node in products if all(constants.get(i) is not None for i in node.input)]
