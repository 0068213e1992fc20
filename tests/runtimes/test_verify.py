"""verify holds on a good bundle, and each planted fault is caught by the level that should."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edge_attn import golden
from edge_attn.bundle import FORMAT, Bundle, Manifest, write_bundle
from edge_attn.config import RuntimeOptions, Seq2SeqConfig
from edge_attn.errors import BundleError, InputError, UsageError
from edge_attn.golden import Golden, Said
from edge_attn.models.reference import Reference, record_model
from edge_attn.models.seq2seq import Seq2Seq
from edge_attn.search import Hypothesis
from edge_attn.spec import GraphSpec, Value
from edge_attn.text import EOS, Text
from edge_attn.training import checkpoint
from runtimes import levels
from runtimes.base import open_runtime
from runtimes.report import Report
from runtimes.verify import check, verify

torch.set_num_threads(1)

Files = dict[str, bytes]


@pytest.fixture(scope="session")
def opened(toy_bundle) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture(scope="session")
def toy(opened):
    return open_runtime(opened, "ort-cpu", RuntimeOptions(threads=1))


@pytest.fixture(scope="session")
def said(opened) -> Golden:
    return golden.load(opened.read)


def failing(report: Report) -> set[str]:
    """`L2.kl` for each finding that does not hold, without what it compared."""
    return {f"{f.level}.{f.name.partition(' ')[0]}" for level in report.levels for f in level.findings if not f.ok}


def statuses(report: Report) -> dict[str, str]:
    return {level.name: level.status for level in report.levels}


def test_a_good_bundle_holds(toy_bundle, said):
    report = verify(toy_bundle, options=RuntimeOptions(threads=1))
    assert (report.verdict, report.exit_code) == ("holds", 0)
    assert statuses(report) == {
        "L0": "not requested",
        "L1": "holds",
        "L2": "holds",
        "L3": "holds",
        "L4": "not requested",
        "L5": "holds",
    }
    assert report.sentences == len(said.sentences)
    assert report.provider == "CPUExecutionProvider"
    assert not any(level.flips for level in report.levels)
    shown = str(report)
    assert "L4 corpus: BLEU and chrF: not requested" in shown
    assert shown.endswith("parity holds")
    names = {f"{f.level}.{f.name.partition(' ')[0]}" for level in report.levels for f in level.findings}
    assert names >= {"L1.max_abs", "L1.p99", "L1.relative", "L1.cosine", "L1.alignment", "L1.state"}
    assert names >= {"L2.log_prob", "L2.rest", "L2.projection", "L2.kl", "L2.top1"}
    assert names >= {
        "L3.tokens",
        "L3.n_best",
        "L3.chrf",
        "L3.excused",
        "L3.log_prob",
        "L3.score",
        "L3.alignment",
        "L3.text",
    }
    assert names >= {"L5.rerun", "L5.tokens", "L5.excused"}


# ---- faults in the files of a bundle whose hashes are right


def planted(opened: Bundle, path: Path, change: Callable[[Files], None], **manifest) -> Path:
    """A bundle with changed files that opens all the same."""
    files = {name: opened.read(name) for name in opened.manifest.files}
    change(files)
    write_bundle(path, dataclasses.replace(opened.manifest, **manifest), files)
    return path


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
    """One weight of the combination, [36 + 24, 24], by 1e-2."""
    weight = next(tensor for tensor in graph.initializer if list(tensor.dims) == [60, 24])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[30, 7] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def behind(output: str, *nodes: onnx.NodeProto) -> Callable[[onnx.GraphProto], None]:
    """Puts `nodes` between what gave `output` (now `output.before`) and the output."""

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


def deaf(graph: onnx.GraphProto) -> None:
    """The step takes its parents times nothing: every hypothesis goes on from the first."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == "parents":
                node.input[i] = "parents.nothing"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int64), "nothing"))
    graph.node.insert(0, onnx.helper.make_node("Mul", ["parents", "nothing"], ["parents.nothing"]))


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
    "the parents ignored": (in_graph("step", deaf), {"L3.n_best"}, {"L1", "L2", "L5"}),
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
def test_a_planted_fault_is_caught(opened, tmp_path, fault):
    change, expected, unharmed = FAULTS[fault]
    report = verify(planted(opened, tmp_path / "bundle.zip", change), options=RuntimeOptions(threads=1))
    assert (report.verdict, report.exit_code) == ("fails", 1)
    assert failing(report) >= expected
    assert {name for name, status in statuses(report).items() if status == "holds"} >= unharmed
    assert str(report).endswith("parity fails")


def test_ignored_parents_leave_greedy_search_as_it_was(opened, tmp_path):
    report = verify(
        planted(opened, tmp_path / "bundle.zip", in_graph("step", deaf)),
        levels=["L3"],
        options=RuntimeOptions(threads=1),
    )
    wrong = {finding.name for finding in report.levels[3].findings if not finding.ok}
    assert "n_best beam" in wrong
    assert "tokens greedy" not in wrong


def test_one_rare_entry_of_a_large_vocabulary_shows_in_the_projections_alone(tmp_path):
    """Models in torch, so that nothing is exported: the fault is 0.05 on the bias of the token that nobody says."""
    text = Text.train("words", [(" ".join(f"w{i}" for i in range(300)),) * 2], 400, 400)
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
    said = record_model(good, text, [f"w{i} w{2 * i} w{3 * i}" for i in range(9)], 9, folded=False)
    assert 200 not in said.arrays["steps.top_ids"]
    manifest = Manifest(FORMAT, "seq2seq", "seq2seq", "fp32", dict(Reference(good).graphs), 9)
    bundle = Bundle(tmp_path, manifest, text.files())
    assert check(bundle, Reference(good), said).verdict == "holds"
    report = check(bundle, Reference(bad), said)
    assert report.verdict == "fails"
    assert failing(report) == {"L2.projection"}


# ---- faults of a runtime


@dataclasses.dataclass
class Faulty:
    """A runtime that hands its outputs to `change` first."""

    inner: object
    change: Callable[[str, dict[str, np.ndarray]], object]
    name: str = "faulty"
    max_batch: int | None = None
    provider: str = "none"
    precision: str = "fp32"

    @property
    def graphs(self) -> Mapping[str, GraphSpec]:
        return self.inner.graphs

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        found = {name: self.inner.numpy(value).copy() for name, value in self.inner.run(graph, inputs).items()}
        self.change(graph, found)
        return found

    def numpy(self, value: Value) -> np.ndarray:
        return value

    def rows(self, value: Value, index: np.ndarray) -> Value | None:
        return None


OUTPUTS = (
    ("encoder", "memory.keys"),
    ("encoder", "memory.values"),
    ("encoder", "state.hidden.0"),
    ("step", "candidates"),
    ("step", "log_probs"),
    ("step", "alignment"),
    ("step", "next_state.hidden.0"),
)


@pytest.mark.parametrize(("graph", "output"), OUTPUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_never_parity(opened, toy, said, graph, output, value):
    def change(ran: str, outputs: dict[str, np.ndarray]) -> None:
        if ran == graph:
            outputs[output][...] = value

    few = first(said, 6)
    report = check(opened, Faulty(toy, change), few)
    assert report.exit_code == 1
    content = json.loads(report.json())
    assert content["verdict"] == "fails"
    assert report.junit()


def first(said: Golden, count: int) -> Golden:
    """The golden data of the first sentences; of those arrays that are read row by row nothing needs to be cut."""
    return dataclasses.replace(
        said,
        sentences=said.sentences[:count],
        sources=said.sources[:count],
        greedy=said.greedy[:count],
        n_best=said.n_best[:count],
    )


def test_a_part_of_the_golden_data_holds_too(opened, toy, said):
    assert check(opened, toy, first(said, 6)).verdict == "holds"


def test_one_nan_at_one_step_of_one_sentence_is_found(opened, toy, said):
    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step" and len(outputs["log_probs"]) > 1:
            outputs["log_probs"][1, 0, 5] = np.nan

    report = check(opened, Faulty(toy, change), said, ["L2"])
    assert statuses(report)["L2"] == "fails"
    assert {"L2.projection", "L2.kl", "L2.top1"} <= failing(report)


def test_a_batch_that_differs_from_the_sentence_alone(opened, toy, said):
    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step" and len(outputs["candidates"]) > 1:
            for name in ("candidates", "candidate_ids"):
                outputs[name][0] = outputs[name][1]

    level = check(opened, Faulty(toy, change), said, ["L5"]).levels[5]
    assert level.status == "fails"
    assert {f.name for f in level.findings if not f.ok} == {"tokens batched", "tokens shuffled"}
    assert {flip.where for flip in level.flips} == {"batched", "shuffled"}


def test_a_runtime_that_says_another_thing_the_second_time(opened, toy, said):
    runs = 0

    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        nonlocal runs
        runs += 1
        if graph == "step":
            outputs["candidates"] -= np.float32(1e-6) * (runs % 5)

    report = check(opened, Faulty(toy, change), said)
    assert failing(report) == {"L5.rerun"}


def test_alignments_turned_round(opened, toy, said):
    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step":
            outputs["alignment"] = outputs["alignment"][:, :, ::-1]

    report = check(opened, Faulty(toy, change), said)
    assert failing(report) == {"L1.alignment", "L3.alignment"}


def test_alignments_of_the_step_before(opened, toy, said):
    """The attention of a token stands in the row of the next one."""
    held: list[np.ndarray] = []

    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "encoder":
            held.clear()
        else:
            held.append(outputs["alignment"])
            outputs["alignment"] = held[-2] if len(held) > 1 and held[-2].shape == held[-1].shape else held[-1]

    report = check(opened, Faulty(toy, change), said)
    assert failing(report) == {"L1.alignment", "L3.alignment"}


# ---- flips that a margin excuses


def tie_breaker(least: float) -> Callable[[str, dict[str, np.ndarray]], None]:
    """Takes the second best candidate where it is less than `least` behind."""

    def change(graph: str, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step":
            best = outputs["candidates"]
            near = best[..., 0] - best[..., 1] < least
            ids = outputs["candidate_ids"][near]
            ids[:, [0, 1]] = ids[:, [1, 0]]
            outputs["candidate_ids"][near] = ids

    return change


@pytest.fixture(scope="session")
def greedy_only(said) -> Golden:
    """Golden data whose beam search is greedy too, since ties are broken in greedy search's way here."""
    arrays = {name: rows for name, rows in said.arrays.items() if name != "beam.alignment"}
    config = dataclasses.replace(said.search, beam=1, n_best=1)
    return dataclasses.replace(said, search=config, n_best=tuple((one,) for one in said.greedy), arrays=arrays)


def with_noise(said: Golden, noise: np.ndarray) -> Golden:
    return dataclasses.replace(said, arrays={**said.arrays, "steps.noise": noise})


def test_a_flip_is_excused_below_the_references_noise_only(opened, toy, greedy_only):
    margins = -np.diff(greedy_only.arrays["steps.top_log_probs"][:, :2], axis=1)[:, 0]
    least = float(np.sort(margins)[0] * 1.001)
    runtime = Faulty(toy, tie_breaker(least))
    row = int(margins.argmin())
    sentence = next(i for i, part in enumerate(greedy_only.steps()) if part.start <= row < part.stop)
    noise = np.zeros(len(margins), np.float32)
    report = check(opened, runtime, with_noise(greedy_only, noise), ["L3"], {"L3.tokens": 0.0})
    flip = report.levels[3].flips[0]
    assert (flip.sentence, flip.step, flip.excused) == (sentence, row - greedy_only.steps()[sentence].start, False)
    assert flip.margin == pytest.approx(margins[row])
    assert "greedy" in flip.where
    assert report.verdict == "fails"
    noise[row] = margins[row] * 1.01
    report = check(opened, runtime, with_noise(greedy_only, noise), ["L3"])
    flip, *_ = greedy = [flip for flip in report.levels[3].flips if flip.where == "greedy"]
    assert len(greedy) == 1
    assert flip.excused
    assert f"sentence {sentence}, step {flip.step}: token {flip.candidate} for {flip.reference}" in str(report)
    assert "(excused: a tie below the noise)" in str(report)
    found = {finding.name: finding for finding in report.levels[3].findings}
    assert found["tokens greedy"].value == 0
    assert 0 < found["excused greedy"].value <= 0.005


def test_too_many_excuses_are_none(opened, toy, greedy_only):
    noise = np.full(len(greedy_only.arrays["steps.noise"]), 100, np.float32)
    report = check(opened, Faulty(toy, tie_breaker(100.0)), with_noise(greedy_only, noise), ["L5"])
    found = {finding.name: finding for finding in report.levels[5].findings}
    assert found["tokens batched"].ok
    assert found["excused batched"].value > 0.005
    assert not found["excused batched"].ok
    assert report.exit_code == 1


def a_hypothesis(tokens: tuple[int, ...], score: float, noise: float = 0.0) -> Said:
    return Said(tokens, "", score * (len(tokens) + 1), score, noise * (len(tokens) + 1), True)


def test_a_beam_flip_needs_two_recorded_hypotheses_and_their_margin():
    a, b = a_hypothesis((5, 6), -0.5, 1e-4), a_hypothesis((5, 7, 8), -0.50015, 1e-4)
    found = {one.tokens: Hypothesis(one.tokens, one.log_prob, one.score, True) for one in (a, b)}
    stranger = Hypothesis((9,), -0.9, -0.5, True)
    assert levels._beam_flip((a, b), (found[a.tokens], found[b.tokens]), 3) is None
    flip = levels._beam_flip((a, b), (found[b.tokens], found[a.tokens]), 3)
    assert (flip.sentence, flip.step, flip.reference, flip.candidate) == (3, 1, 6, 7)
    assert flip.margin == pytest.approx(0.00015)
    assert flip.noise == pytest.approx(0.0002)
    assert flip.excused
    quiet = dataclasses.replace(b, noise=0.0)
    assert not levels._beam_flip((a, quiet), (found[b.tokens], found[a.tokens]), 3).excused
    assert not levels._beam_flip((a, b), (stranger, found[b.tokens]), 3).excused
    assert not levels._beam_flip((a, b), (found[a.tokens],), 3).excused
    assert not levels._beam_flip((a,), (found[a.tokens], found[b.tokens]), 3).excused


def test_divergence_forgives_rounding_and_sees_another_distribution():
    p = np.log(np.array([[0.9, 0.06, 0.04]]))
    shift = 2e-6  # of every logit, as rounding a large log-sum-exp does
    said = {"top_log_probs": p[:, :2], "rest": p[:, 2]}
    rounded = {"top_log_probs": p[:, :2] + shift, "rest": p[:, 2] + shift}
    other = np.log(np.array([[0.89, 0.07, 0.04]]))
    assert abs(levels._divergence(said, rounded)[0]) < 1e-10
    expected = float((np.exp(p) * (p - other)).sum())
    assert levels._divergence(said, {"top_log_probs": other[:, :2], "rest": other[:, 2]})[0] == pytest.approx(expected)


# ---- bounds, levels, references


def test_a_manifest_that_is_looser_than_the_code(opened, tmp_path):
    path = planted(opened, tmp_path / "a.zip", lambda files: None, tolerances={"L1.max_abs": 1.0})
    with pytest.raises(BundleError, match="looser than the ceiling"):
        verify(path)
    path = planted(opened, tmp_path / "b.zip", lambda files: None, tolerances={"L1.maximum": 0.0})
    with pytest.raises(BundleError, match=r"'L1.maximum' is not a bound"):
        verify(path)


def test_a_stricter_manifest_binds(opened, tmp_path):
    path = planted(opened, tmp_path / "a.zip", lambda files: None, tolerances={"L2.log_prob": 1e-9})
    assert failing(verify(path, levels=["L2"])) == {"L2.log_prob"}


def test_an_override_loosens_one_run_and_stands_in_its_report(opened, tmp_path):
    path = planted(opened, tmp_path / "a.zip", lambda files: None, tolerances={"L2.log_prob": 1e-9})
    report = verify(path, levels=["L2"], overrides={"L2.log_prob": 0.25})
    assert report.exit_code == 0
    assert "override: L2.log_prob = 0.25" in str(report)
    assert json.loads(report.json())["overrides"] == {"L2.log_prob": 0.25}


def test_what_nobody_knows(toy_bundle):
    with pytest.raises(UsageError, match=r"'L2.x': not a bound"):
        verify(toy_bundle, overrides={"L2.x": 1.0})
    with pytest.raises(UsageError, match="unknown level 'L6'; known: L0, L1"):
        verify(toy_bundle, levels=["L6"])
    with pytest.raises(UsageError, match="unknown runtime 'tvm'"):
        verify(toy_bundle, "tvm")
    with pytest.raises(UsageError, match="--input needs --reference"):
        verify(toy_bundle, sentences=Path("lines"))


def test_only_what_was_asked_for_runs(toy_bundle):
    report = verify(toy_bundle, levels=["L1"])
    assert statuses(report) == {**dict.fromkeys(("L0", "L2", "L3", "L4", "L5"), "not requested"), "L1": "holds"}
    assert report.exit_code == 0


@pytest.mark.parametrize("asked", [["L4"], ["L1", "L4"], ["L0"]])
def test_what_was_asked_for_and_cannot_run_is_never_a_pass(toy_bundle, asked):
    report = verify(toy_bundle, levels=asked)
    assert statuses(report)[asked[-1]] == "not tested"
    assert (report.verdict, report.exit_code) == ("not tested", 3)
    assert "not tested (verify runs L1, L2, L3, L5)" in str(report)
    assert str(report).endswith("parity NOT TESTED")


def test_a_failure_outranks_what_was_not_tested(opened, tmp_path):
    path = planted(opened, tmp_path / "bundle.zip", in_graph("step", nudge))
    assert verify(path, levels=["L2", "L4"]).exit_code == 1


def test_against_live_torch(toy_bundle, toy_checkpoint, tmp_path):
    lines = tmp_path / "lines"
    lines.write_text("the cat sees a small dog\nking\nthe pelican sees a dog\n" + "a red cat and " * 20 + "\n")
    report = verify(toy_bundle, reference=toy_checkpoint, sentences=lines, options=RuntimeOptions(threads=1))
    assert report.verdict == "holds"
    assert report.sentences == 4
    assert report.against == str(toy_checkpoint)
    assert str(toy_checkpoint) in str(report)


def test_against_live_torch_on_the_golden_sentences_another_checkpoint_fails(toy_bundle, toy_checkpoint, tmp_path):
    model, text, config = checkpoint.load(toy_checkpoint)
    with torch.no_grad():
        model.combine.weight[3, 4] += 0.01
    checkpoint.save_config(tmp_path, config, text)
    checkpoint.save_model(tmp_path, model, "fp32")
    report = verify(toy_bundle, reference=tmp_path, options=RuntimeOptions(threads=1))
    assert report.exit_code == 1
    assert report.sentences > 60
    assert "L2.log_prob" in failing(report)


def test_a_checkpoint_of_another_family_is_refused(toy_bundle, toy_checkpoint, tmp_path):
    _, text, config = checkpoint.load(toy_checkpoint)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="none"))
    checkpoint.save_config(tmp_path, config, text)
    checkpoint.save_model(tmp_path, checkpoint.make_model(config, text), "fp32")
    with pytest.raises(InputError, match=r"is of another model than this bundle: it has memory.summary"):
        verify(toy_bundle, reference=tmp_path)


def test_a_checkpoint_of_a_larger_vocabulary_is_refused(toy_bundle, toy_checkpoint, tmp_path):
    _, _, config = checkpoint.load(toy_checkpoint)
    words = " ".join(f"w{i}" for i in range(60))
    text = Text.train("words", [(words, words)], 100, 100)
    checkpoint.save_config(tmp_path, config, text)
    checkpoint.save_model(tmp_path, checkpoint.make_model(config, text), "fp32")
    lines = tmp_path / "lines"
    lines.write_text(words[:30])
    with pytest.raises(InputError, match=r"tokens up to .* vocabularies of 31 -> 31 entries"):
        verify(toy_bundle, reference=tmp_path, sentences=lines)


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "cannot be read"), (b" \n", "no sentence"), (b"\xff", "UTF-8")]
)
def test_sentences_that_are_none(toy_bundle, toy_checkpoint, tmp_path, content, sentence):
    lines = tmp_path / "lines"
    if content is not None:
        lines.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        verify(toy_bundle, reference=toy_checkpoint, sentences=lines)


def test_without_torch_verify_runs_and_a_reference_is_not_tested(run_edge_attn, toy_bundle, toy_checkpoint):
    absent = ("torch", "onnx", "safetensors")
    assert run_edge_attn("verify", toy_bundle, "--level", "L2", "--threads", 1, absent=absent).returncode == 0
    done = run_edge_attn("verify", toy_bundle, "--reference", toy_checkpoint, absent=absent)
    assert done.returncode == 3
    assert b"torch is not installed; run: pip install 'edge-attn[export]'" in done.stderr


def test_a_folded_memory_of_the_plain_ones_shape_is_told_apart(tmp_path):
    """Luong's layout with a decoder as wide as the encoder's output: what is folded, and what is not, look the same."""
    from edge_attn.config import Config, DataConfig, TextConfig, TrainingConfig
    from edge_attn.training import checkpoint
    from export.pipeline import export

    pairs = [(" ".join(f"w{i} w{i + 1} w{i + 2}".split()), f"v{i} v{i + 1}") for i in range(80)]
    model = Seq2SeqConfig(embedding=8, encoder_hidden=4, decoder_hidden=8, attention_size=4, attend="after")
    config = Config(
        DataConfig("none.tsv", holdout=1, max_tokens=12), TextConfig("words", 99, 99), model, TrainingConfig()
    )
    text = Text.train("words", pairs, 99, 99)
    torch.manual_seed(1)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    checkpoint.save_config(folder, config, text)
    checkpoint.save_model(folder, checkpoint.make_model(config, text), "fp32")
    checkpoint.save_samples(folder, [source for source, _ in pairs])
    export(folder, tmp_path / "bundle.zip")
    report = verify(tmp_path / "bundle.zip", reference=folder)
    assert report.verdict == "holds", str(report)
