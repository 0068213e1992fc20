"""Changes of a bundle's step graph that ONNX Runtime loads and that do not run as described."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import TensorProto, helper

from edge_attn.bundle.bundle import Bundle

OUTPUT = "log_probs"
"""Output that the changes replace; each keeps its producer under another name."""


def bundle_with_graph(bundle: Bundle, name: str, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    """Return `bundle` with its graph `name` changed."""
    spec = bundle.manifest.graphs[name]
    model = onnx.load_from_string(bundle.read(spec.file))
    change(model)
    return Bundle(bundle.path, bundle.manifest, {**bundle.files(), spec.file: model.SerializeToString()})


def bundle_with_string_output(bundle: Bundle) -> Bundle:
    """Return `bundle` with texts as log-probabilities in the graph."""

    def change(model: onnx.ModelProto) -> None:
        insert(model, [("Cast", ["before"], {"to": TensorProto.STRING})], {})
        output = next(output for output in model.graph.output if output.name == OUTPUT)
        output.type.tensor_type.elem_type = TensorProto.STRING

    return bundle_with_graph(bundle, "step", change)


def insert(model: onnx.ModelProto, nodes: list[tuple], constants: dict[str, onnx.TensorProto]) -> None:
    """Insert nodes, (op, inputs, attributes), between the producer of OUTPUT, now `before`, and OUTPUT."""
    for node in model.graph.node:
        node.output[:] = ["before" if name == OUTPUT else name for name in node.output]
        node.input[:] = ["before" if name == OUTPUT else name for name in node.input]
    names = ["before", *(f"added_{i}" for i in range(1, len(nodes))), OUTPUT]
    for i, (op, inputs, attributes) in enumerate(nodes):
        inputs = [names[i] if name == "last" else name for name in inputs]
        model.graph.node.append(helper.make_node(op, inputs, [names[i + 1]], name=f"added/{op}", **attributes))
    for name, tensor in constants.items():
        tensor.name = name
        model.graph.initializer.append(tensor)


def _integers(*values: int) -> onnx.TensorProto:
    return helper.make_tensor("", TensorProto.INT64, [len(values)], values)


def endless_loop(model: onnx.ModelProto) -> None:
    """Loop for 2**62 iterations."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["value"], ["next"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("value", TensorProto.FLOAT, None)],
        [info("on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, None)],
    )
    constants = {
        "trips": helper.make_tensor("", TensorProto.INT64, [], [2**62]),
        "true": helper.make_tensor("", TensorProto.BOOL, [], [True]),
    }
    insert(model, [("Loop", ["trips", "true", "before"], {"body": body})], constants)


def wrong_size(model: onnx.ModelProto) -> None:
    """Return an axis that is twice too long."""
    insert(model, [("Concat", ["before", "before"], {"axis": 1})], {})


def impossible_shape(model: onnx.ModelProto) -> None:
    """Reshape to a shape of another number of elements, which only a run computes."""
    nodes = [("Shape", ["before"], {}), ("Add", ["last", "one"], {}), ("Reshape", ["before", "last"], {})]
    insert(model, nodes, {"one": _integers(1)})


def index_outside(model: onnx.ModelProto) -> None:
    """Gather a row that does not exist."""
    nodes = [
        ("Reshape", ["tokens", "flat"], {}),
        ("Add", ["last", "many"], {}),
        ("Gather", ["before", "last"], {"axis": 0}),
    ]
    insert(model, nodes, {"flat": _integers(-1), "many": _integers(10**6)})


def huge_tile(model: onnx.ModelProto) -> None:
    """Repeat an output 10**12 times."""
    insert(model, [("Tile", ["before", "repeats"], {})], {"repeats": _integers(10**6, 10**6, 1)})


def huge_constant(model: onnx.ModelProto) -> None:
    """Make an array of 2**50 elements, of which the largest is added."""
    largest = ("ReduceMax", ["last"], {"keepdims": 0})
    nodes = [("ConstantOfShape", ["size"], {}), largest, ("Add", ["last", "before"], {})]
    insert(model, nodes, {"size": _integers(2**50)})


RUN_ERRORS: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "an endless loop": (endless_loop, r"node added/Loop \(Loop\) was stopped after 1 seconds"),
    "an axis too long": (wrong_size, r"its output log_probs has the shape \(2, 2, \d+\), expected \(2, 1, \d+\)"),
    "a shape that is impossible": (impossible_shape, r"node added/Reshape \(Reshape\)"),
    "an index outside": (index_outside, r"node added/Gather \(Gather\).*out of data bounds"),
    "a huge tile": (huge_tile, r"node added/Tile \(Tile\)"),
    "a huge constant": (huge_constant, r"node added/ConstantOfShape \(ConstantOfShape\)"),
}
"""Changes by what they make, and the error that they have."""
