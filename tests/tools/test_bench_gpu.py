"""Tests of the GPU benchmark: its results from measurements, and its contenders as far as a CPU runs them."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import EMBEDDED_BUNDLE, EMBEDDED_CHECKPOINT

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.validation import read_toml
from edge_attn.errors import InputError, NotTestedError, ParityError
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.profiles import Buckets
from edge_attn.spec import GraphSpec, TensorSpec

pytest.importorskip("torch", reason="torch is not installed: a device needs none")
pytest.importorskip("onnx", reason="needs torch and onnx: the benchmark counts weights in the graph of the step")

import bench_gpu as bench
import gpu_machine
import torch_greedy as greedy

LINES = ("the red king", "a cat sees the dog", "the tree", "every child")


@pytest.fixture
def sources(toy_bundle) -> list[list[int]]:
    return encoded(toy_bundle)


def encoded(bundle: Path) -> list[list[int]]:
    return [*map(Bundle.open(bundle).text().encode_source, LINES)]


def test_floor_is_a_launch_and_the_longer_of_two_times():
    speed = gpu_machine.Speed(1e9, {"fp32": 1e9, "fp16": 4e9}, 5e-6)
    assert speed.floor(4000, 1000, "fp32") == pytest.approx(9e-6)
    assert speed.floor(4000, 32000, "fp32") == pytest.approx(37e-6)
    assert speed.floor(2000, 1000, "fp16") == pytest.approx(7e-6)
    assert speed.floor(2000, 32000, "fp16") == pytest.approx(13e-6)


def test_step_load_counts_weights_and_memory():
    step = GraphSpec(
        "graphs/step.onnx",
        (
            TensorSpec("tokens", "int64", ("batch", "beam")),
            TensorSpec("memory.keys", "float32", ("batch", "src", 10)),
            TensorSpec("memory.context", "float32", ("batch", 1, 4)),
            TensorSpec("memory.mask", "bool", ("batch", "src")),
            TensorSpec("state.hidden.0", "float32", ("batch", "previous_beam", 8)),
        ),
        (),
    )
    load_of = gpu_machine.step_load
    numbers, mask = 32 * (7 * 10 + 4), 32 * 7
    assert load_of(step, 1000, 32, 7, "fp32") == (4 * (1000 + numbers) + mask, 32 * 1000 + numbers)
    assert load_of(step, 1000, 32, 7, "fp16") == (2 * (1000 + numbers) + mask, 32 * 1000 + numbers)
    assert load_of(step, 1000, 1, 0, "fp32") == (4 * 1004, 1004)


@pytest.fixture
def rows():
    def row(contender: str, precision: str, batch: int, tokens: float, step: float = 1e-3):
        return bench.Row(contender, precision, batch, 500, tokens, 4e-5, step, 1e-5, f"provider of {contender}")

    return [
        row("torch eager", "fp32", 1, 100.0),
        row("torch eager", "fp16", 1, 90.0),
        row("torch eager", "fp32", 32, 1000.0),
        row("torch eager", "fp16", 32, 1100.0),
        row("ort-cuda", "fp16", 1, 200.0),
        row("trt", "fp16", 1, 310.0, 2e-5),
        row("trt", "fp32", 1, 999.0, 2e-5),
        row("trt", "fp16", 32, 2100.0, 1.4e-5),
        row("torch CUDA graph", "fp16", 32, 9999.0, 1.1e-5),
    ]


def test_table_compares_with_the_faster_eager_torch(rows):
    lines = bench.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "| 1 | trt | fp16 | 500 | 310 | 3.10 | 40.0 | 20.0 | 10.0 | 2.00 | provider of trt |" in lines
    assert "| 32 | trt | fp16 | 500 | 2100 | 1.91 | 40.0 | 14.0 | 10.0 | 1.40 | provider of trt |" in lines
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 1"] * 5 + ["| 32"] * 4
    assert len({line.count("|") for line in lines}) == 1


def test_table_without_torch_has_no_ratio_and_no_floor():
    row = bench.Row("trt", "fp16", 1, 500, 310.0, 4e-5, 2e-5, None, "a | b")
    assert bench.table([row]).splitlines()[2] == "| 1 | trt | fp16 | 500 | 310 | - | 40.0 | 20.0 | - | - | a / b |"


def test_goals_count_our_runtimes_in_fp16(rows):
    assert [str(goal) for goal in bench.goals(rows)] == [
        "goal: fp16 at least 3 times eager torch at batch 1: got 3.10, met",
        "goal: fp16 at least 2 times eager torch at batch 32: got 1.91, MISSED",
        "goal: a step of fp16 at most 1.5 times its floor at batch 32: got 1.40, met",
    ]


def test_goal_without_measurement_is_not_met():
    for goal in bench.goals([]):
        assert not goal.met
        assert str(goal).endswith(": not measured")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bench, "BATCHES", (1, 2))
    monkeypatch.setattr(bench, "STEPS", 2)
    monkeypatch.setattr(bench, "WARM_UP", 1)


@pytest.mark.usefixtures("quick")
def test_contender_is_measured_or_has_a_reason(sources, toy_bundle, toy_checkpoint):
    class OneSentence(bench.Ours):
        def decode(self, sources):
            if len(sources) > 1:
                raise InputError("one at a time")
            return super().decode(sources)

    class FailsLater(bench.Ours):
        turns = 0

        def decode(self, sources):
            self.turns += 1
            if self.turns > 9:  # after two passes over four batches of one
                raise RuntimeError("no kernel\nand more lines")
            return super().decode(sources)

        def stepper(self, sources):
            raise AssertionError("it has no rate")

    class WithoutStep(bench.Ours):
        def stepper(self, sources):
            raise NotTestedError("no step")

    bundle = Bundle.open(toy_bundle)
    running = {("torch eager", "fp32"): greedy.TorchGreedy(toy_checkpoint, "torch eager", "fp32", "cpu")}
    for name, kind in (
        ("ort-cpu", bench.Ours),
        ("small", OneSentence),
        ("fails later", FailsLater),
        ("without step", WithoutStep),
    ):
        running[name, "fp32"] = kind(bundle, "ort-cpu", "fp32")
    missing = bench.Missing()
    measured: list = []
    for batch in (1, 2):
        measured += bench.measure(running, sources, batch, 1, lambda batch, src, _: 1e-6 * batch * src, missing)
    assert missing == {
        "small fp32 at batch 2": "one at a time",
        **{f"fails later fp32 at batch {batch}": "RuntimeError: no kernel" for batch in (1, 2)},
        **{f"without step fp32 at batch {batch}": "no step" for batch in (1, 2)},
    }
    assert [row.contender for row in measured] == ["torch eager", "ort-cpu", "small", "torch eager", "ort-cpu"]
    assert [row.batch for row in measured] == [1, 1, 1, 2, 2]
    assert all(row.tokens > 0 and row.step > 0 and row.encoder > 0 for row in measured)
    assert [row.floor / row.batch for row in measured] == [pytest.approx(1e-6 * len(sources[2]))] * 5
    assert len({row.generated for row in measured}) == 1
    assert {row.provider.partition(",")[0] for row in measured} == {"CPUExecutionProvider", running_torch()}


def running_torch() -> str:
    import torch

    return f"torch {torch.__version__}"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("one\ntwo"), "one"),
        (
            RuntimeError("backend='inductor' raised:\n\n Cannot find gcc\nmore"),
            "RuntimeError: backend='inductor' raised: Cannot find gcc",
        ),
        (RuntimeError(), "RuntimeError:"),
    ],
)
def test_reason_is_one_line(error, expected):
    assert bench.reason(error) == expected


@pytest.mark.parametrize("mode", ["torch eager", "torch CUDA graph"])
@pytest.mark.parametrize("which", ["toy", "embedded"])
def test_torch_generates_the_same_tokens_in_every_mode(toy_bundle, toy_checkpoint, monkeypatch, mode, which):
    """The function itself replaces the CUDA graph that would be captured from it."""
    monkeypatch.setattr(greedy, "capture", lambda function: function)
    checkpoint, bundle = {"toy": (toy_checkpoint, toy_bundle), "embedded": (EMBEDDED_CHECKPOINT, EMBEDDED_BUNDLE)}[
        which
    ]
    ours, sources = bench.Ours(Bundle.open(bundle), "ort-cpu", "fp32"), encoded(bundle)
    torch_ = greedy.TorchGreedy(checkpoint, mode, "fp32", "cpu")
    monkeypatch.setattr(greedy.torch_ops, "_run_packed", None)  # reorders the weights for every batch
    for batch in (sources, sources[:2], sources, sources[1:2]):
        assert torch_.decode(batch) == ours.decode(batch) > 0
    assert torch_.stepper(sources)().shape == (len(sources), 1)
    assert torch_.encoding(sources)().shape[0] == len(ours.encoding(sources)()) == len(sources)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("lengths", [[5, 1, 3], [5, 5]])
def test_torch_layer_matches_the_layer_of_the_model(cell, lengths):
    import torch

    from edge_attn.models.layers.recurrent import RecurrentLayer

    torch.manual_seed(1)
    layer = RecurrentLayer(cell, 3, 4)
    torch.nn.init.uniform_(layer.b)
    own = greedy.Recurrent(layer)
    own.lengths = torch.tensor(lengths)
    x = torch.randn(len(lengths), 5, 3)
    with torch.no_grad():
        expected, ends = layer(x, own.lengths)
        actual, own_ends = own(x, own.lengths)
    for one, other in zip((actual, *own_ends), (expected, *ends), strict=True):
        torch.testing.assert_close(one, other)


def test_capture_allows_other_threads_on_the_gpu(monkeypatch):
    """Work in the thread of another contender would end the capture in torch's default mode, global."""
    done = []
    cuda = greedy.torch.cuda
    stream = SimpleNamespace(wait_stream=lambda other: done.append("wait"))
    monkeypatch.setattr(cuda, "Stream", lambda: stream)
    monkeypatch.setattr(cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(cuda, "stream", lambda on: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: done.append("replay")))

    @contextlib.contextmanager
    def graph(captured, capture_error_mode="global"):
        done.append(capture_error_mode)
        yield

    monkeypatch.setattr(cuda, "graph", graph)
    greedy.capture(lambda: done.append("work"))()
    assert done == ["wait", *["work"] * greedy.WARM_UP, "wait", "thread_local", "work", "replay"]


def test_set_up_raises_the_recompile_limit(monkeypatch):
    """The default limit of eight compilations is too low for two precisions and two batches."""
    import torch

    for name in ("additive_attention", "dot_attention"):
        monkeypatch.setattr(greedy.torch_ops, name, getattr(greedy.torch_ops, name))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        greedy.set_up()
        assert torch._dynamo.config.recompile_limit == 64
        assert torch._dynamo.config.fail_on_recompile_limit_hit


def test_every_runtime_and_way_is_a_contender(toy_checkpoint, toy_bundle):
    makers = bench.contenders(toy_checkpoint, Bundle.open(toy_bundle))
    names = {name for name, _ in makers}
    assert names == {"ort-cuda", "trt", "trt-rtx", "CTranslate2", *greedy.MODES}
    assert tuple(greedy.MODES) == bench.TORCH
    with pytest.raises(NotTestedError, match="no recurrent model"):
        makers["CTranslate2", "fp16"]()


def test_targets_are_optimized_in_a_copy(monkeypatch, toy_bundle, tmp_path):
    """The calls of optimize are those for greedy decoding; one that fails does not stop the others."""
    optimized = []

    def optimize(bundle, target, precision, **options):
        if (target, precision) == ("trt", "fp32"):
            raise ParityError("the results differ\nmore lines")
        profiles = options.get("profiles")
        optimized.append((target, precision, profiles and read_toml(BuildConfig, profiles)))

    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.optimize", optimize)
    before, missing = toy_bundle.read_bytes(), bench.Missing()
    copy = bench.with_targets(toy_bundle, tmp_path, 2.5, missing.attempt)
    assert copy.parent == tmp_path
    assert copy.read_bytes() == toy_bundle.read_bytes() == before
    greedily = BuildConfig(Buckets(batch=(1, 32), beam=1), max_build_minutes=2.5)
    assert optimized == [("ort-cuda", "fp32", None), ("ort-cuda", "fp16", None), ("trt", "fp16", greedily)]
    assert missing == {"optimize trt fp32": "the results differ"}


def test_sources_are_from_the_file_or_golden(toy_bundle, toy_pairs):
    bundle = Bundle.open(toy_bundle)
    for corpus in (None, toy_pairs):
        sources = bench.read_sources(toy_bundle, corpus, 20)
        assert len(sources) == 20
        assert [len(source) for source in sources] == sorted(len(source) for source in sources)
        assert max(map(len, sources)) <= bundle.manifest.max_source


@pytest.fixture
def run(toy_checkpoint, toy_bundle, toy_pairs, tmp_path, monkeypatch):
    """Run the script on a machine with `gpu`; return its exit code and its JSON."""
    monkeypatch.setattr(greedy, "set_up", lambda: None)
    monkeypatch.setattr(bench, "with_targets", lambda bundle, *_: bundle)

    def run(gpu: str | None, *more: str):
        monkeypatch.setattr(bench, "machine", lambda: {"gpu": gpu, "versions": {}})
        arguments = [str(toy_checkpoint), str(toy_bundle), str(toy_pairs), "--json", str(tmp_path / "results.json")]
        monkeypatch.setattr(sys, "argv", ["bench_gpu.py", *arguments, *more])
        return bench.main(), json.loads((tmp_path / "results.json").read_text())

    return run


@pytest.mark.usefixtures("quick")
def test_script_without_contender_returns_3(run, monkeypatch, capsys):
    def absent():
        raise NotTestedError("no such GPU")

    monkeypatch.setattr(bench, "contenders", lambda *_: {("trt", "fp16"): absent})
    code, results = run("a GPU")
    printed = capsys.readouterr()
    assert code == 3
    assert "not available: trt fp16: no such GPU\n" in printed.out
    assert printed.out.count("not measured") == 3
    assert "nothing was measured: no contender runs here" in printed.err
    assert results["not available"]["trt fp16"] == "no such GPU"


def test_script_without_gpu_measures_nothing(run, monkeypatch, capsys):
    monkeypatch.setattr(bench, "contenders", None)
    monkeypatch.setattr(bench, "with_targets", None)
    assert run(None) == (3, {"gpu": None, "versions": {}, "rows": [], "not available": {}})
    assert "nothing was measured: no NVIDIA GPU answers" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_script_prints_and_writes_its_results(run, toy_checkpoint, toy_bundle, monkeypatch, capsys):
    def contenders(*_):
        return {
            ("torch eager", "fp32"): lambda: greedy.TorchGreedy(toy_checkpoint, "torch eager", "fp32", "cpu"),
            ("ort-cuda", "fp16"): lambda: bench.Ours(Bundle.open(toy_bundle), "ort-cpu", "fp32"),
            ("trt", "fp16"): None,
        }

    monkeypatch.setattr(bench, "contenders", contenders)
    monkeypatch.setattr(bench, "BATCHES", (1, 32))
    monkeypatch.setattr(bench, "measure_speed", lambda: bench.Speed(1e9, {"fp32": 1e9, "fp16": 4e9}, 5e-6))
    code, results = run("a GPU", "--sentences", "4", "--rounds", "1", "--skip", "trt")
    printed = capsys.readouterr().out
    assert code == 0
    assert results["not available"] == {}
    assert [(row["contender"], row["batch"]) for row in results["rows"]] == [
        *(("torch eager", 1), ("ort-cuda", 1)),
        *(("torch eager", 32), ("ort-cuda", 32)),
    ]
    assert results["speed"]["launch"] == 5e-6
    assert all(row["floor"] > 5e-6 for row in results["rows"])
    assert printed.count("\n| 32 | ") == 2
    assert "not measured" not in printed
