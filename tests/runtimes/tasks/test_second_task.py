"""Tests of a second task, labels from one graph: it is recorded, exported, verified and run like translation."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="torch is not installed: a device needs none")

import onnx
import torch
from label_task import GRAPH, LABELS, VOCABULARY, LabelTask

import edge_attn
from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import FORMAT, Manifest
from edge_attn.bundle.writer import update_bundle
from edge_attn.errors import BundleError, ParityError
from edge_attn.export.pipeline import export_graphs
from edge_attn.models.graphs import Graph
from edge_attn.models.layers.pooling import Pooling
from edge_attn.reference import TorchRuntime
from edge_attn.registry import TASKS
from edge_attn.runtimes.verification.verify import verify
from edge_attn.spec import GraphSpec, TensorSpec

LINES = ("it rains.", "does it rain?", "rain!", "where is the cat?", "here.", "run!", "a")


class LabelGraph(Graph):
    """Embeddings, attention pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embedding = torch.nn.Embedding(VOCABULARY, 8)
        self.pooling = Pooling(8, 6)
        self.output = torch.nn.Linear(8, len(LABELS))
        self.spec = GraphSpec(
            "graphs/classifier.onnx",
            (
                TensorSpec("source", "int64", ("batch", "src"), (0, VOCABULARY - 1)),
                TensorSpec("source_length", "int64", ("batch",), (0, "src")),
            ),
            (TensorSpec("logits", "float32", ("batch", len(LABELS))),),
        )

    def forward(self, source: torch.Tensor, source_length: torch.Tensor) -> tuple[torch.Tensor]:
        mask = torch.arange(source.shape[1])[None, :] < source_length[:, None]
        pooled, _ = self.pooling(self.embedding(source), mask)
        return (self.output(pooled),)


@pytest.fixture(autouse=True)
def registered_task(monkeypatch):
    monkeypatch.setitem(TASKS, "labels", "label_task:TASK")


@pytest.fixture
def bundle(tmp_path):
    graph = LabelGraph().eval()
    references = SimpleNamespace(reference=TorchRuntime({GRAPH: graph}))
    manifest = Manifest(FORMAT, "classifier", "labels", "fp32", {}, 100)
    export_graphs(tmp_path / "labels", manifest, {}, {GRAPH: graph}, references, LINES)
    return tmp_path / "labels"


def test_exported_bundle_returns_the_labels_of_torch(bundle):
    graph = LabelGraph().eval()
    labels = edge_attn.load(bundle).classify(LINES)
    for line, label in zip(LINES, labels, strict=True):
        tokens = torch.tensor([[*line.encode("ascii"), 3]])
        with torch.no_grad():
            (logits,) = graph(tokens, torch.tensor([tokens.shape[1]]))
            assert label == LABELS[int(logits.argmax())]
    assert len(set(labels)) > 1


def test_verify_runs_the_levels_of_the_task(bundle):
    report = verify(bundle)
    assert {level.name: level.status for level in report.levels if level.status != "not requested"} == {
        "L1": "holds",
        "L3": "holds",
    }
    assert (report.exit_code, report.sentences) == (0, len(LINES))
    assert verify(bundle, levels=["L2"]).exit_code == 3
    assert Bundle.open(bundle).manifest.verification["levels"] == {"L1": "holds", "L3": "holds"}


def test_verbs_read_a_bundle_of_another_task(edge_attn_cli, bundle):
    assert "labels" in edge_attn_cli("inspect", bundle).stdout
    assert "parity holds" in edge_attn_cli("verify", bundle).stdout


def replace_golden(bundle, **changes):
    def change(opened):
        golden = dataclasses.replace(LabelTask().load_golden(opened), **changes)
        return opened.manifest, {**opened.files(), **golden.files()}

    update_bundle(bundle, change)


def test_other_labels_fail_verification(bundle):
    labels = LabelTask().load_golden(Bundle.open(bundle)).labels
    replace_golden(bundle, labels=labels[::-1])
    report = verify(bundle)
    assert [level.status for level in report.levels if level.name in ("L1", "L3")] == ["holds", "fails"]
    assert report.exit_code == 1


def test_golden_data_of_another_model_is_refused(bundle):
    logits = LabelTask().load_golden(Bundle.open(bundle)).logits
    replace_golden(bundle, logits=logits[:, :2])
    with pytest.raises(BundleError, match=r"the array logits is <f4 \(7, 2\)"):
        verify(bundle)


def test_golden_data_that_was_cut_down_is_refused(bundle):
    golden = LabelTask().load_golden(Bundle.open(bundle))
    replace_golden(bundle, lines=golden.lines[:1], labels=golden.labels[:1], logits=golden.logits[:1])
    with pytest.raises(BundleError, match="golden data has 1 lines, the manifest lists 7"):
        verify(bundle)


def test_row_that_no_line_reads_fails_verification(bundle):
    def scale(opened):
        model = onnx.load_model_from_string(opened.read("graphs/classifier.onnx"))
        table = next(tensor for tensor in model.graph.initializer if tensor.dims[0] == VOCABULARY)
        values = onnx.numpy_helper.to_array(table).copy()
        values[ord("~")] *= 2
        table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
        return opened.manifest, {**opened.files(), "graphs/classifier.onnx": model.SerializeToString()}

    update_bundle(bundle, scale)
    failed = [measured for level in verify(bundle).levels for measured in level.measurements if not measured.ok]
    assert [(measured.name, measured.where) for measured in failed] == [("probe logits", f"token id {ord('~')}")]


def test_bundle_without_the_graph_is_refused(bundle, toy_bundle, tmp_path):
    opened = Bundle.open(toy_bundle)
    with pytest.raises(BundleError, match="needs the graph 'classifier'"):
        verify(Bundle(tmp_path, dataclasses.replace(opened.manifest, task="labels"), opened.files()))


def test_export_of_differing_results_writes_nothing(tmp_path, monkeypatch):
    def record(task, bundle, references, inputs):
        golden = original(task, bundle, references, inputs)
        return dataclasses.replace(golden, logits=golden.logits + 1)

    original = LabelTask.record
    monkeypatch.setattr(LabelTask, "record", record)
    graph = LabelGraph().eval()
    references = SimpleNamespace(reference=TorchRuntime({GRAPH: graph}))
    manifest = Manifest(FORMAT, "classifier", "labels", "fp32", {}, 100)
    with pytest.raises(ParityError, match="max_abs logits"):
        export_graphs(tmp_path / "labels", manifest, {}, {GRAPH: graph}, references, LINES)
    assert list(tmp_path.iterdir()) == []
