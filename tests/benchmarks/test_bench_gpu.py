"""What the GPU benchmark computes from its measurements, and its contenders as far as a CPU runs them."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edge_attn.bundle import Bundle
from edge_attn.errors import InputError, NotTestedError

pytest.importorskip("torch", reason="torch is not installed: a device needs none")
pytest.importorskip("onnx", reason="needs torch and onnx: the step's weights are counted in its graph")


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of this folder as the interpreter finds it when it runs one."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module(name)


@pytest.fixture
def bench(monkeypatch):
    return load("bench_gpu", monkeypatch)


@pytest.fixture
def greedy(monkeypatch):
    return load("torch_greedy", monkeypatch)


@pytest.fixture
def sources(bench, toy_bundle) -> list[list[int]]:
    read = bench.reader(toy_bundle)
    return [read(line) for line in ("the red king", "a cat sees the dog", "the tree", "every child")]


def test_the_floor_is_the_larger_of_reading_and_multiplying(monkeypatch):
    speed = load("gpu_machine", monkeypatch).Speed(1e9, {"fp32": 1e9, "fp16": 4e9}, 0.0)
    assert speed.floor(1000, 1, "fp32") == pytest.approx(4e-6)  # 4,000 bytes
    assert speed.floor(1000, 32, "fp32") == pytest.approx(32e-6)  # 32,000 products
    assert speed.floor(1000, 1, "fp16") == pytest.approx(2e-6)
    assert speed.floor(1000, 32, "fp16") == pytest.approx(8e-6)


@pytest.fixture
def rows(bench):
    return [
        bench.Row("torch eager", "fp32", 1, 100.0, 1e-3, 1e-5),
        bench.Row("torch eager", "fp16", 1, 90.0, 1e-3, 1e-5),
        bench.Row("torch eager", "fp32", 32, 1000.0, 1e-3, 1e-5),
        bench.Row("torch eager", "fp16", 32, 1100.0, 1e-3, 1e-5),
        bench.Row("ort-cuda", "fp16", 1, 200.0, 1e-3, 1e-5),
        bench.Row("trt", "fp16", 1, 310.0, 2e-5, 1e-5),
        bench.Row("trt", "fp32", 1, 999.0, 2e-5, 1e-5),
        bench.Row("trt", "fp16", 32, 2100.0, 1.4e-5, 1e-5),
        bench.Row("torch CUDA graph", "fp16", 32, 9999.0, 1.1e-5, 1e-5),
    ]


def test_the_table_compares_with_the_quicker_of_eager_torch(bench, rows):
    lines = bench.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "| 1 | trt | fp16 | 310 | 3.10 | 20.0 | 10.0 | 2.00 |" in lines
    assert "| 32 | trt | fp16 | 2100 | 1.91 | 14.0 | 10.0 | 1.40 |" in lines
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 1"] * 5 + ["| 32"] * 4


def test_the_table_without_torch_has_no_ratio_and_no_floor(bench):
    line = bench.table([bench.Row("trt", "fp16", 1, 310.0, 2e-5, None)]).splitlines()[2]
    assert line == "| 1 | trt | fp16 | 310 | - | 20.0 | - | - |"


def test_the_goals_are_those_of_our_runtimes_in_fp16(bench, rows):
    assert [str(goal) for goal in bench.goals(rows)] == [
        "goal: fp16 at least 3 times eager torch at batch 1: found 3.10, met",
        "goal: fp16 at least 2 times eager torch at batch 32: found 1.91, MISSED",
        "goal: a step of fp16 at most 1.5 times its floor at batch 32: found 1.40, met",
    ]


def test_a_goal_without_a_measurement_is_not_met(bench):
    for goal in bench.goals([]):
        assert not goal.met
        assert str(goal).endswith(": not measured")


@pytest.fixture
def quick(bench, monkeypatch):
    monkeypatch.setattr(bench, "BATCHES", (1, 2))
    monkeypatch.setattr(bench, "STEPS", 2)
    monkeypatch.setattr(bench, "WARM_UP", 1)


@pytest.mark.usefixtures("quick")
def test_each_contender_is_measured_or_has_its_reason(bench, greedy, sources, toy_bundle, toy_checkpoint):
    def broken():
        raise RuntimeError("no kernel\nand more lines")

    def absent():
        raise NotTestedError("not here")

    class Small(bench.Ours):
        def decode(self, sources):
            if len(sources) > 1:
                raise InputError("one at a time")
            return super().decode(sources)

    makers = {
        ("torch eager", "fp32"): lambda: greedy.TorchGreedy(toy_checkpoint, "torch eager", "fp32", "cpu"),
        ("ort-cpu", "fp32"): lambda: bench.Ours(Bundle.open(toy_bundle), "ort-cpu", "fp32"),
        ("small", "fp32"): lambda: Small(Bundle.open(toy_bundle), "ort-cpu", "fp32"),
        ("a", "fp16"): absent,
        ("b", "fp16"): broken,
    }
    rows, missing = bench.measure(makers, sources, 1, lambda batch, precision: 1e-6 * batch)
    assert missing == {
        "a fp16": "not here",
        "b fp16": "RuntimeError: no kernel",
        "small fp32 at batch 2": "one at a time",
    }
    assert [row.contender for row in rows] == ["torch eager", "ort-cpu", "small", "torch eager", "ort-cpu"]
    assert [row.batch for row in rows] == [1, 1, 1, 2, 2]
    assert all(row.tokens > 0 and row.step > 0 for row in rows)


@pytest.mark.parametrize("way", ["torch eager", "torch CUDA graph"])
def test_the_ways_of_torch_make_the_tokens_that_ours_makes(
    bench, greedy, sources, toy_bundle, toy_checkpoint, monkeypatch, way
):
    """A recorded graph is stood in for by the work that it would record."""
    monkeypatch.setattr(greedy, "record", lambda work: work)
    ours = bench.Ours(Bundle.open(toy_bundle), "ort-cpu", "fp32")
    torch_ = greedy.TorchGreedy(toy_checkpoint, way, "fp32", "cpu")
    for batch in (sources, sources[:2], sources, sources[1:2]):
        assert torch_.decode(batch) == ours.decode(batch) > 0
    assert torch_.stepper(sources)().shape == (len(sources), 1)


def test_every_runtime_and_way_is_a_contender(bench, greedy, toy_checkpoint, toy_bundle):
    made = bench.contenders(toy_checkpoint, Bundle.open(toy_bundle))
    names = {name for name, _ in made}
    assert names == {"ort-cuda", "trt", "trt-rtx", "CTranslate2", *greedy.WAYS}
    assert tuple(greedy.WAYS) == bench.TORCH
    with pytest.raises(NotTestedError, match="no recurrent model"):
        made["CTranslate2", "fp16"]()


def test_where_nothing_runs_the_script_says_why_and_gives_3(
    bench, greedy, toy_checkpoint, toy_bundle, toy_pairs, tmp_path, monkeypatch, capsys
):
    def absent():
        raise NotTestedError("no GPU")

    monkeypatch.setattr(bench, "contenders", lambda *_: {("trt", "fp16"): absent})
    monkeypatch.setattr(greedy, "set_up", lambda: None)
    arguments = [str(toy_checkpoint), str(toy_bundle), str(toy_pairs), "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", *arguments])
    assert bench.main() == 3
    printed = capsys.readouterr()
    assert "not available: trt fp16: no GPU\n" in printed.out
    assert printed.out.count("not measured") == 3
    assert "nothing was measured" in printed.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"date", "gpu", "python", "versions", "rows", "not available"} <= found.keys()
