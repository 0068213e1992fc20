"""Tests of the table of supported targets: it is current, and every kind of model has its bundle."""

from __future__ import annotations

import dataclasses

import pytest
from paths import PROJECT

from edge_attn.bundle.bundle import Bundle
from edge_attn.registry import ATTENTION_WRAPPERS, ATTENTIONS, CELLS, FAMILIES

onnx = pytest.importorskip("onnx", reason="needs torch or the extra optimize: onnx writes the graphs of the targets")
pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install edge-attn[trt-rtx]")

import support_table as support

PAGE = PROJECT / "docs" / "targets.md"


@pytest.mark.rtx
@pytest.mark.slow
def test_targets_page_has_the_current_table():
    printed = support.text()
    committed = PAGE.read_text(encoding="utf-8").partition("<!-- support -->\n")[2]
    assert committed.startswith(printed), f"put this under <!-- support --> in docs/targets.md:\n{printed}"


def test_every_kind_of_model_is_tried():
    """A new row in the registry needs its bundle: python tests/data/make_kinds.py."""
    kinds = [path.stem.rpartition("-") for path in support.KINDS.glob("*.zip")]
    known = {*ATTENTIONS, *ATTENTION_WRAPPERS, "sparsemax"} - {"concat"}  # additive by another name
    assert {attention for attention, _, _ in kinds} == known
    assert {cell for _, _, cell in kinds} == set(CELLS)
    assert {Bundle.open(path).manifest.family for path in support.KINDS.glob("*.zip")} == set(FAMILIES)


def test_kinds_with_equal_results_share_a_row():
    fp32, fp16 = support.Support("trt", "fp32", "yes", "yes"), support.Support("trt", "fp16", "yes", "yes")
    refused = dataclasses.replace(fp16, builds="no: unsupported op")
    results = {
        ("seq2seq", "dot", "gru"): [fp32, fp16],
        ("seq2seq", "additive", "gru"): [fp32, fp16],
        ("seq2seq", "additive", "lstm"): [fp32, refused],
    }
    assert [line.split(" | ")[1:6] for line in support.table(results).splitlines()[2:]] == [
        ["all", "trt", "fp32", "yes", "yes"],
        ["additive, dot × gru", "trt", "fp16", "yes", "yes"],
        ["additive × lstm", "trt", "fp16", "yes", "no: unsupported op"],
    ]
    assert support.kind_names(results) == "additive, dot × gru; additive × lstm"


@pytest.mark.rtx
def test_graph_that_tensorrt_refuses_is_reported(toy_bundle):
    bundle, tensorrt = Bundle.open(toy_bundle), support.load_tensorrt(rtx=True)
    spec = bundle.manifest.graphs["step"]
    model = onnx.load_model_from_string(bundle.read(spec.file))
    assert support.builds(tensorrt, bundle, model.SerializeToString(), spec) == "yes"
    model.graph.node.append(onnx.helper.make_node("NonZero", ["log_probs"], ["where"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("where", onnx.TensorProto.INT64, None))
    for answer in (
        support.parses(tensorrt, model.SerializeToString()),
        support.builds(tensorrt, bundle, model.SerializeToString(), spec),
    ):
        assert answer.startswith("no: ")
        assert "NonZero" in answer
