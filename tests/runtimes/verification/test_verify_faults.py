"""Tests of verify on bundles with a planted fault and correct hashes: the expected levels fail."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: a device needs none")

import onnx
import torch
from verify_reports import Files, failing, planted, statuses

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import FORMAT, Manifest
from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.config.training import TextConfig
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.parity import golden
from edge_attn.parity.recorder import record_translation
from edge_attn.reference import ModelReferences
from edge_attn.runtimes.verification.verify import check, verify
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import EOS

torch.set_num_threads(1)


def in_graph(name: str, change: Callable[[onnx.GraphProto], None]) -> Callable[[Files], None]:
    def rewrite(files: Files) -> None:
        model = onnx.load_model_from_string(files[f"graphs/{name}.onnx"])
        change(model.graph)
        files[f"graphs/{name}.onnx"] = model.SerializeToString()

    return rewrite


def in_json(name: str, change: Callable[[object], object]) -> Callable[[Files], None]:
    def rewrite(files: Files) -> None:
        files[name] = json.dumps(change(json.loads(files[name]))).encode()

    return rewrite


def nudge(graph: onnx.GraphProto) -> None:
    """Change one weight of the combination, [36 + 24, 24], by 1e-2."""
    weight = next(tensor for tensor in graph.initializer if list(tensor.dims) == [60, 24])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[30, 7] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def behind(output: str, *nodes: onnx.NodeProto) -> Callable[[onnx.GraphProto], None]:
    """Return a change that inserts `nodes` before `output`; its former value becomes `output.before`."""

    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    names[i] = f"{name}.before" if name == output else name
        graph.node.extend(nodes)

    return change


MASK = "memory.mask"
INVERTED = behind(MASK, onnx.helper.make_node("Not", [f"{MASK}.before"], [MASK]))
DROPPED = behind(
    MASK,
    onnx.helper.make_node("Not", [f"{MASK}.before"], ["no"]),
    onnx.helper.make_node("Or", [f"{MASK}.before", "no"], [MASK]),
)


def ignore_parents(graph: onnx.GraphProto) -> None:
    """Multiply the parents by zero, so that every hypothesis continues the first."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == "parents":
                node.input[i] = "parents.zero"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int64), "zero"))
    graph.node.insert(0, onnx.helper.make_node("Mul", ["parents", "zero"], ["parents.zero"]))


def swap(entries: list, i: int = -1, j: int = -2) -> list:
    entries[i], entries[j] = entries[j], entries[i]
    return entries


def each(content: dict, key: str, change: Callable[[list], object]) -> dict:
    for entry in content[key]:
        change(entry)
    return content


FAULTS = {
    "a weight of the step": (in_graph("step", nudge), {"L2.log_prob", "L2.projection"}, set()),
    "the mask inverted": (in_graph("encoder", INVERTED), {"L1.max_abs", "L1.alignment", "L3.tokens"}, set()),
    "the mask dropped": (in_graph("encoder", DROPPED), {"L1.alignment", "L2.log_prob"}, set()),
    "the parents ignored": (in_graph("step", ignore_parents), {"L3.n_best"}, {"L1", "L2", "L5"}),
    "target entries swapped": (in_json("text/target.json", swap), {"L3.text"}, {"L1", "L2", "L5"}),
    "source entries swapped": (in_json("text/source.json", swap), {"L3.text"}, {"L1", "L2", "L5"}),
    "another n-best order": (
        in_json(golden.FILES[0], lambda content: each(content, "n_best", lambda entry: swap(entry, 1, 2))),
        {"L3.n_best"},
        {"L1", "L2", "L5"},
    ),
    "a shorter n-best list": (
        in_json(golden.FILES[0], lambda content: each(content, "n_best", list.pop)),
        {"L3.n_best"},
        {"L1", "L2", "L5"},
    ),
    "other scores": (
        in_json(
            golden.FILES[0], lambda content: each(content, "n_best", lambda e: e[0].update(score=e[0]["score"] + 0.01))
        ),
        {"L3.score"},
        {"L1", "L2", "L5"},
    ),
    "another text": (
        in_json(golden.FILES[0], lambda content: each(content, "greedy", lambda e: e.update(text=e["text"] + " "))),
        {"L3.text"},
        {"L1", "L2", "L5"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_fails_verification(opened, tmp_path, fault):
    change, expected, unharmed = FAULTS[fault]
    report = verify(planted(opened, tmp_path / "bundle.zip", change), options=RuntimeOptions(threads=1))
    assert (report.verdict, report.exit_code) == ("fails", 1)
    assert failing(report) >= expected
    assert {name for name, status in statuses(report).items() if status == "holds"} >= unharmed
    assert str(report).endswith("parity fails")


def test_ignored_parents_do_not_change_greedy_search(opened, tmp_path):
    report = verify(
        planted(opened, tmp_path / "bundle.zip", in_graph("step", ignore_parents)),
        levels=["L3"],
        options=RuntimeOptions(threads=1),
    )
    failed = {item.name for item in report.level("L3").measurements if not item.ok}
    assert "n_best beam" in failed
    assert "tokens greedy" not in failed


def test_fault_in_a_rare_token_fails_only_projections_and_probes(tmp_path):
    """The models stay in torch. The fault is 0.05 on the bias of a token that is never generated."""
    text = Text.train(TextConfig("words", 400, 400), [(" ".join(f"w{i}" for i in range(300)),) * 2])
    torch.manual_seed(1)
    config = Seq2SeqConfig(embedding=16, encoder_hidden=8, decoder_hidden=16, attention_size=8)
    good = Seq2Seq(config, len(text.source), len(text.target)).eval()
    with torch.no_grad():
        good.output.weight *= 12
        good.output.bias[EOS] += 3
        good.output.bias[200] -= 20
    bad = copy.deepcopy(good)
    with torch.no_grad():
        bad.output.bias[200] += 0.05
    references = ModelReferences(good, folded=False)
    recorded = record_translation(references, text, [f"w{i} w{2 * i} w{3 * i}" for i in range(9)], 9)
    assert 200 not in recorded.arrays["steps.top_ids"]
    manifest = Manifest(FORMAT, "seq2seq", "translation", "fp32", dict(references.reference.graphs), 9)
    bundle = Bundle(tmp_path, manifest, text.files())
    assert check(bundle, references.reference, recorded).verdict == "holds"
    report = check(bundle, ModelReferences(bad).reference, recorded)
    assert report.verdict == "fails"
    assert failing(report) == {"L2.projection", "L2.probe"}


def test_failure_outranks_not_tested(opened, tmp_path):
    path = planted(opened, tmp_path / "bundle.zip", in_graph("step", nudge))
    assert verify(path, levels=["L2", "L4"]).exit_code == 1
