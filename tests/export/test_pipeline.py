"""Tests of the export pipeline: every model agrees with torch at every shape, in plain ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from plain_onnxruntime import assert_matches_in_plain_onnxruntime
from safetensors.torch import load_file

import edge_attn
from edge_attn import checkpoint
from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import FORMAT
from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.export import lower
from edge_attn.export.pipeline import graph_model
from edge_attn.models.graphs import encoder_decoder_graphs
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.ops import DOMAIN
from edge_attn.registry import ATTENTIONS
from edge_attn.runtimes.verification.verify import verify

torch.set_num_threads(1)


# ---- a checkpoint to a bundle


def graph_files(bundle: Path) -> dict[str, onnx.ModelProto]:
    opened = Bundle.open(bundle)
    return {name: onnx.load_model_from_string(opened.read(spec.file)) for name, spec in opened.manifest.graphs.items()}


def test_manifest_describes_the_bundle(bundle, toy_checkpoint):
    manifest = Bundle.open(bundle).manifest
    assert (manifest.format, manifest.family, manifest.task, manifest.precision) == (
        FORMAT,
        "seq2seq",
        "translation",
        "fp32",
    )
    assert manifest.max_source == 20
    assert manifest.verification["levels"] == dict.fromkeys(("L1", "L2", "L3", "L5"), "holds")
    assert manifest.verification["sentences"] >= 64
    provenance = manifest.provenance
    assert provenance["edge_attn"] == edge_attn.__version__
    assert provenance["parameters"] == sum(p.numel() for p in checkpoint.load(toy_checkpoint)[0].parameters())
    assert 0 < provenance["graphs"]["step"]["max_abs_from_torch"] < 1e-5
    assert provenance["graphs"]["step"]["ops"]["edge_attn::AdditiveAttention"] == 1
    assert provenance["graphs"]["encoder"]["ops"]["edge_attn::Gru"] == 1
    assert [tensor.shape for tensor in manifest.graphs["step"].outputs if tensor.name == "candidates"] == [
        ("batch", "beam", 4)
    ]


def test_golden_sentences_include_the_users(bundle):
    sentences = json.loads(Bundle.open(bundle).read("golden/golden.json"))["sentences"]
    assert {"the cat sees a dog", "every small child follows this old king", "bread"} <= set(sentences)


def test_bundle_matches_its_checkpoint_with_few_candidates(bundle, toy_checkpoint):
    report = verify(bundle, reference=toy_checkpoint, options=RuntimeOptions(threads=1))
    assert report.verdict == "holds"


@pytest.mark.parametrize("name", ["encoder", "step"])
def test_graphs_are_portable(bundle, name):
    model = graph_files(bundle)[name]
    assert model.ir_version <= 10
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18, DOMAIN: 1}
    assert not model.graph.value_info
    called = {node.op_type for node in lower.nodes(model.graph) if node.domain == DOMAIN}
    assert (
        called
        == {function.name for function in model.functions}
        == {{"encoder": "Gru", "step": "AdditiveAttention"}[name]}
    )
    for node in model.graph.node:
        if node.domain == DOMAIN:
            assert {"plugin_namespace", "plugin_version"} <= {attribute.name for attribute in node.attribute}
            assert all([*node.input, *node.output])
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("name", ["encoder", "step"])
def test_weights_are_stored_as_in_the_checkpoint(bundle, toy_checkpoint, name):
    """The toy checkpoint is fp16: large initializers are too, and a Cast returns the same numbers."""
    graph = graph_files(bundle)[name].graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    halves = {tensor for tensor, values in tensors.items() if values.dtype == np.float16}
    casts = {node.input[0]: node for node in graph.node if node.op_type == "Cast" and node.input[0] in tensors}
    assert halves == casts.keys()
    assert {onnx.helper.get_node_attr_value(node, "to") for node in casts.values()} == {onnx.TensorProto.FLOAT}
    assert not [n for n, values in tensors.items() if values.dtype == np.float32 and values.nbytes >= 1024]
    stored = [value.numpy() for value in load_file(toy_checkpoint / "model.safetensors").values()]
    assert {value.dtype for value in stored} == {np.dtype(np.float16)}
    all_weights = np.concatenate([value.ravel() for value in stored])
    for half in halves:  # a whole weight, or its part for the context or the embedding
        assert np.isin(tensors[half], all_weights).all(), half


@pytest.mark.parametrize("name", ["encoder", "step"])
def test_graphs_run_in_plain_onnxruntime(bundle, toy_checkpoint, tmp_path, name):
    model, _, _ = checkpoint.load(toy_checkpoint)
    module = encoder_decoder_graphs(model, 4)[name]
    graph = Bundle.open(bundle).read(f"graphs/{name}.onnx")
    assert_matches_in_plain_onnxruntime(graph, module, module.spec, tmp_path)


# ---- every attention


CONFIGS = [
    Seq2SeqConfig(
        attention=attention,
        cell=("gru", "lstm")[i % 2],
        attend=("before", "after")[i // 2 % 2],
        input_feeding=i % 3 == 0,
        bridge=("linear", "none")[i % 4 == 1],
        tied_output=i == 1,
        encoder_layers=1 + (i == 3),
        decoder_layers=1 + (i in (2, 5)),
        embedding=16,
        encoder_hidden=8,
        decoder_hidden=16,
        attention_size=8,
    )
    for i, attention in enumerate(ATTENTIONS)
]


def config_name(config: Seq2SeqConfig) -> str:
    parts = [
        config.attention,
        config.cell,
        config.attend,
        config.bridge,
        f"{config.encoder_layers}+{config.decoder_layers}",
    ]
    return "-".join([*parts, *["feed"] * config.input_feeding, *["tied"] * config.tied_output])


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=config_name)
def test_every_attention_exports_and_matches(config, tmp_path):
    torch.manual_seed(4)
    model = Seq2Seq(config, 31, 40)
    for name, graph in encoder_decoder_graphs(model, 6).items():
        proto, worst = graph_model(name, graph, graph.spec)
        assert worst < 1e-5
        assert_matches_in_plain_onnxruntime(proto.SerializeToString(), graph, graph.spec, tmp_path)


def test_configs_cover_all_options():
    assert {config.attention for config in CONFIGS} == ATTENTIONS.keys()
    for field, values in {
        "cell": {"gru", "lstm"},
        "attend": {"before", "after"},
        "input_feeding": {True, False},
        "bridge": {"none", "linear"},
        "tied_output": {True, False},
        "encoder_layers": {1, 2},
        "decoder_layers": {1, 2},
    }.items():
        assert {getattr(config, field) for config in CONFIGS} == values
