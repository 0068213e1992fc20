"""Tests of verify on harmless changes of the toy bundle: other kernels and other forms of the graphs must hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.runtimes.ort import cpu
from edge_attn.runtimes.verification.verify import verify

Rewrite = Callable[[onnx.ModelProto], onnx.ModelProto]


def test_two_threads_hold(opened):
    assert verify(opened, options=RuntimeOptions(threads=2)).verdict == "holds"


@pytest.mark.slow
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"])
def test_every_optimization_level_holds(opened, monkeypatch, level):
    settings_of = cpu.session_settings

    def with_level(options: RuntimeOptions) -> ort.SessionOptions:
        settings = settings_of(options)
        settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        return settings

    monkeypatch.setattr(cpu, "session_settings", with_level)
    assert verify(opened).verdict == "holds"


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.inliner.inline_local_functions(model)


def rename_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every value of the graph another name, except its inputs and outputs."""
    interface = {value.name for value in (*model.graph.input, *model.graph.output)} | {""}
    names = {tensor.name for tensor in model.graph.initializer}
    names |= {name for node in model.graph.node for name in node.output}
    renamed = {name: f"value.{i}" for i, name in enumerate(sorted(names - interface))}
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in model.graph.node:
        assert not any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute)
        for values in (node.input, node.output):
            values[:] = [renamed.get(name, name) for name in values]
    return model


def reverse_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    tensors = list(model.graph.initializer)[::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    return model


def transpose_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store the weights of matrix multiplications transposed: other kernels compute the same products."""
    for tensor in model.graph.initializer:
        readers = [node for node in model.graph.node if tensor.name in node.input]
        if len(tensor.dims) != 2 or not readers or any(node.op_type != "MatMul" for node in readers):
            continue
        name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values.T), f"{name}.transposed"))
        model.graph.node.insert(0, onnx.helper.make_node("Transpose", [tensor.name], [name], perm=[1, 0]))
    return model


def add_identities(model: onnx.ModelProto) -> onnx.ModelProto:
    """Insert an Identity behind every node."""
    for i, node in zip(itertools.count(), list(model.graph.node), strict=False):
        interface = {value.name for value in model.graph.output}
        if node.output[0] and node.output[0] not in interface:
            before = f"{node.output[0]}.before.{i}"
            identity = onnx.helper.make_node("Identity", [before], [node.output[0]])
            model.graph.node.insert(list(model.graph.node).index(node) + 1, identity)
            node.output[0] = before
    return model


def scale_by_two(model: onnx.ModelProto) -> onnx.ModelProto:
    """Halve the weights of matrix multiplications and double the products: exact, but other numbers on the way."""
    for tensor in model.graph.initializer:
        readers = [node for node in model.graph.node if tensor.name in node.input]
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 2 or not readers:
            continue
        if any(node.op_type != "MatMul" or len(node.output) != 1 for node in readers):
            continue
        values = onnx.numpy_helper.to_array(tensor) * np.float32(0.5)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(2.0), f"{tensor.name}.two"))
        for node in readers:
            product, node.output[0] = node.output[0], f"{node.output[0]}.half"
            double = onnx.helper.make_node("Mul", [node.output[0], f"{tensor.name}.two"], [product])
            model.graph.node.insert(list(model.graph.node).index(node) + 1, double)
    return model


REWRITES = (inline_functions, rename_values, reverse_initializers, transpose_weights, add_identities, scale_by_two)


@pytest.mark.slow
@pytest.mark.parametrize("rewrite", REWRITES)
def test_rewritten_graphs_hold(opened, rewrite):
    files = {name: opened.read(name) for name in opened.manifest.files}
    for spec in opened.manifest.graphs.values():
        rewritten = rewrite(onnx.load_from_string(files[spec.file])).SerializeToString()
        assert rewritten != files[spec.file]
        files[spec.file] = rewritten
    assert verify(Bundle(opened.path, opened.manifest, files)).verdict == "holds"
