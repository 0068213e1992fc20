"""Both graphs of every kind of model parse and build with TensorRT-RTX, on a CPU, with dynamic shapes.

This proves that NVIDIA's parser and compiler take them, not what they compute: no engine runs here.
"""

from __future__ import annotations

import functools
from pathlib import Path

import onnx
import onnx.inliner
import pytest
import torch

from edge_attn.bundle import Bundle
from edge_attn.config import Seq2SeqConfig
from edge_attn.models.graphs import graphs
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.ops import DOMAIN
from edge_attn.registry import ATTENTIONS, HOUSE
from export.trace import example_inputs, store_as_fp16, trace

trt = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install edge-attn[trt-rtx]"
)

pytestmark = pytest.mark.rtx
torch.set_num_threads(1)

PROFILE = {"batch": (1, 8, 32), "beam": (1, 4, 5), "previous_beam": (1, 4, 5), "src": (1, 16, 200)}
"""Least, best and largest size of each axis."""
EMBEDDED = HOUSE / "edge_attn" / "pretrained" / "en-fr.zip"
LOGGER = trt.Logger(trt.Logger.ERROR)


class BuildError(Exception):
    """The parser or the builder refused a graph."""


def build(model: onnx.ModelProto) -> int:
    """Parses and builds; gives the bytes of the engine."""
    builder = trt.Builder(LOGGER)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, LOGGER)
    if not parser.parse(model.SerializeToString()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise BuildError("; ".join(f"{e.node_name()} in {e.local_function_stack()}: {e.desc()}" for e in errors))
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    read = {
        tensor.name for layer in layers for i in range(layer.num_inputs) if (tensor := layer.get_input(i)) is not None
    }
    unread = [value.name for value in model.graph.input if value.name not in read]
    if unread:
        raise BuildError(f"the inputs {', '.join(unread)} feed no layer")
    profile = builder.create_optimization_profile()
    for value in model.graph.input:
        shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        profile.set_shape(value.name, *([PROFILE[a][k] if isinstance(a, str) else a for a in shape] for k in range(3)))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError("the builder gives no engine")
    return int(engine.nbytes)


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.inliner.inline_local_functions(model)
    assert DOMAIN not in {node.domain for node in made.graph.node}
    return made


KINDS = [(attention, cell) for attention in ATTENTIONS if attention != "concat" for cell in ("gru", "lstm")]
"""concat is additive by another name."""


@functools.cache
def traced(attention: str, cell: str) -> dict[str, onnx.ModelProto]:
    """Both graphs of a tiny model, fp16 storage and all, without the export's own checks."""
    after = cell == "lstm"
    options = {"attend": "after", "input_feeding": True, "encoder_layers": 2, "decoder_layers": 2} if after else {}
    sizes = {"embedding": 32, "encoder_hidden": 16, "decoder_hidden": 32, "attention_size": 16}
    torch.manual_seed(1)
    model = Seq2Seq(Seq2SeqConfig(attention=attention, cell=cell, **sizes, **options), 60, 70).half().float()
    made = {}
    for name, graph in graphs(model, 6).items():
        axes = {"batch": 2, "src": 7, "beam": 3, "previous_beam": 4}
        made[name] = trace(graph, graph.spec, [torch.from_numpy(value) for value in example_inputs(graph.spec, axes)])
        store_as_fp16(made[name])
    return made


@pytest.mark.slow
@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inlined"])
@pytest.mark.parametrize(("attention", "cell"), KINDS)
def test_every_kind_of_model_builds(attention, cell, inline):
    for model in traced(attention, cell).values():
        assert build(inlined(model) if inline else model) > 0


@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inlined"])
@pytest.mark.parametrize("name", ["encoder", "step"])
@pytest.mark.parametrize("which", ["toy", "embedded"])
def test_a_trained_bundle_builds(toy_bundle, which, name, inline):
    path: Path = {"toy": toy_bundle, "embedded": EMBEDDED}[which]
    if not path.is_file():
        pytest.skip(f"{path.name} is not there yet")
    opened = Bundle.open(path)
    model = onnx.load_model_from_string(opened.read(opened.manifest.graphs[name].file))
    assert build(inlined(model) if inline else model) > 0


# ---- that the alarm rings


def a_step(toy_bundle: Path) -> onnx.ModelProto:
    return onnx.load_model_from_string(Bundle.open(toy_bundle).read("graphs/step.onnx"))


def append(model: onnx.ModelProto, node: onnx.NodeProto, kind: int) -> onnx.ModelProto:
    model.graph.node.append(node)
    model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], kind, None))
    return model


def test_an_op_that_tensorrt_does_not_have_is_refused(toy_bundle):
    node = onnx.helper.make_node("NonZero", ["log_probs"], ["where"])
    with pytest.raises(BuildError, match=r"(?i)plugin|unsupported"):
        build(append(a_step(toy_bundle), node, onnx.TensorProto.INT64))


def test_an_op_of_ours_without_its_body_is_refused(toy_bundle):
    model = a_step(toy_bundle)
    del model.functions[:]
    with pytest.raises(BuildError, match="Plugin not found"):
        build(model)


def test_an_input_that_feeds_no_layer_is_refused(toy_bundle):
    model = a_step(toy_bundle)
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch"]))
    with pytest.raises(BuildError, match="the inputs more feed no layer"):
        build(model)
