"""What the GPU benchmark computes from its measurements, and its contenders as far as a CPU runs them."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from paths import EMBEDDED_CHECKPOINT

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.validation import read_toml
from edge_attn.errors import InputError, NotTestedError, ParityError
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.profiles import Buckets
from edge_attn.spec import GraphSpec, TensorSpec

pytest.importorskip("torch", reason="torch is not installed: a device needs none")
pytest.importorskip("onnx", reason="needs torch and onnx: the step's weights are counted in its graph")

EMBEDDED = EMBEDDED_CHECKPOINT


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


LINES = ("the red king", "a cat sees the dog", "the tree", "every child")


@pytest.fixture
def sources(toy_bundle) -> list[list[int]]:
    return encoded(toy_bundle)


def encoded(bundle: Path) -> list[list[int]]:
    return [*map(Bundle.open(bundle).text().encode_source, LINES)]


def test_the_floor_is_a_launch_and_the_larger_of_reading_and_multiplying(monkeypatch):
    speed = load("gpu_machine", monkeypatch).Speed(1e9, {"fp32": 1e9, "fp16": 4e9}, 5e-6)
    assert speed.floor(4000, 1000, "fp32") == pytest.approx(9e-6)
    assert speed.floor(4000, 32000, "fp32") == pytest.approx(37e-6)
    assert speed.floor(2000, 1000, "fp16") == pytest.approx(7e-6)
    assert speed.floor(2000, 32000, "fp16") == pytest.approx(13e-6)


def test_a_step_reads_and_multiplies_the_weights_and_each_sentences_memory(monkeypatch):
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
    load_of = load("gpu_machine", monkeypatch).step_load
    numbers, mask = 32 * (7 * 10 + 4), 32 * 7
    assert load_of(step, 1000, 32, 7, "fp32") == (4 * (1000 + numbers) + mask, 32 * 1000 + numbers)
    assert load_of(step, 1000, 32, 7, "fp16") == (2 * (1000 + numbers) + mask, 32 * 1000 + numbers)
    assert load_of(step, 1000, 1, 0, "fp32") == (4 * 1004, 1004)


@pytest.fixture
def rows(bench):
    def row(contender: str, precision: str, batch: int, tokens: float, step: float = 1e-3):
        return bench.Row(contender, precision, batch, 500, tokens, 4e-5, step, 1e-5, f"what {contender} is")

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


def test_the_table_compares_with_the_quicker_of_eager_torch(bench, rows):
    lines = bench.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "| 1 | trt | fp16 | 500 | 310 | 3.10 | 40.0 | 20.0 | 10.0 | 2.00 | what trt is |" in lines
    assert "| 32 | trt | fp16 | 500 | 2100 | 1.91 | 40.0 | 14.0 | 10.0 | 1.40 | what trt is |" in lines
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 1"] * 5 + ["| 32"] * 4
    assert len({line.count("|") for line in lines}) == 1


def test_the_table_without_torch_has_no_ratio_and_no_floor(bench):
    row = bench.Row("trt", "fp16", 1, 500, 310.0, 4e-5, 2e-5, None, "a | b")
    assert bench.table([row]).splitlines()[2] == "| 1 | trt | fp16 | 500 | 310 | - | 40.0 | 20.0 | - | - | a / b |"


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
    class Small(bench.Ours):
        def decode(self, sources):
            if len(sources) > 1:
                raise InputError("one at a time")
            return super().decode(sources)

    class Tired(bench.Ours):
        turns = 0

        def decode(self, sources):
            self.turns += 1
            if self.turns > 9:  # two passes over four batches of one, and a little
                raise RuntimeError("no kernel\nand more lines")
            return super().decode(sources)

        def stepper(self, sources):
            raise AssertionError("it has no rate")

    class Stuck(bench.Ours):
        def stepper(self, sources):
            raise NotTestedError("no step")

    bundle = Bundle.open(toy_bundle)
    running = {("torch eager", "fp32"): greedy.TorchGreedy(toy_checkpoint, "torch eager", "fp32", "cpu")}
    for name, kind in (("ort-cpu", bench.Ours), ("small", Small), ("tired", Tired), ("stuck", Stuck)):
        running[name, "fp32"] = kind(bundle, "ort-cpu", "fp32")
    missing = bench.Missing()
    measured: list = []
    for batch in (1, 2):
        measured += bench.measure(running, sources, batch, 1, lambda batch, src, _: 1e-6 * batch * src, missing)
    assert missing == {
        "small fp32 at batch 2": "one at a time",
        **{f"tired fp32 at batch {batch}": "RuntimeError: no kernel" for batch in (1, 2)},
        **{f"stuck fp32 at batch {batch}": "no step" for batch in (1, 2)},
    }
    assert [row.contender for row in measured] == ["torch eager", "ort-cpu", "small", "torch eager", "ort-cpu"]
    assert [row.batch for row in measured] == [1, 1, 1, 2, 2]
    assert all(row.tokens > 0 and row.step > 0 and row.encoder > 0 for row in measured)
    assert [row.floor / row.batch for row in measured] == [pytest.approx(1e-6 * len(sources[2]))] * 5
    assert len({row.made for row in measured}) == 1
    assert {row.provider.partition(",")[0] for row in measured} == {"CPUExecutionProvider", running_torch()}


def running_torch() -> str:
    import torch

    return f"torch {torch.__version__}"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("one\ntwo"), "one"),
        (
            RuntimeError("backend='inductor' raised:\n\n Cannot find gcc\nmore"),
            "RuntimeError: backend='inductor' raised: Cannot find gcc",
        ),
        (RuntimeError(), "RuntimeError:"),
    ],
)
def test_a_reason_is_one_line(bench, error, said):
    assert bench.reason(error) == said


@pytest.mark.parametrize("mode", ["torch eager", "torch CUDA graph"])
@pytest.mark.parametrize("which", ["toy", "embedded"])
def test_torch_generates_the_same_tokens_in_every_mode(
    bench, greedy, toy_bundle, toy_checkpoint, monkeypatch, mode, which
):
    """The function itself replaces the CUDA graph that would be captured from it."""
    monkeypatch.setattr(greedy, "capture", lambda function: function)
    checkpoint, bundle = {"toy": (toy_checkpoint, toy_bundle), "embedded": (EMBEDDED, EMBEDDED.with_suffix(".zip"))}[
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
def test_torchs_own_layer_computes_what_the_models_does(greedy, cell, lengths):
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
        found, own_ends = own(x, own.lengths)
    for one, other in zip((found, *own_ends), (expected, *ends), strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_is_recorded_while_other_threads_use_the_gpu(greedy, monkeypatch):
    """In torch's own mode, global, what another contender's thread does would end the recording."""
    done = []
    cuda = greedy.torch.cuda
    stream = SimpleNamespace(wait_stream=lambda other: done.append("wait"))
    monkeypatch.setattr(cuda, "Stream", lambda: stream)
    monkeypatch.setattr(cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(cuda, "stream", lambda on: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: done.append("replay")))

    @contextlib.contextmanager
    def graph(recorded, capture_error_mode="global"):
        done.append(capture_error_mode)
        yield

    monkeypatch.setattr(cuda, "graph", graph)
    greedy.capture(lambda: done.append("work"))()
    assert done == ["wait", *["work"] * greedy.WARM_UP, "wait", "thread_local", "work", "replay"]


def test_set_up_compiles_for_every_shape_or_says_so(greedy, monkeypatch):
    """By itself dynamo compiles a function eight times, which two precisions and two batches use up."""
    import torch

    for name in ("additive_attention", "dot_attention"):
        monkeypatch.setattr(greedy.torch_ops, name, getattr(greedy.torch_ops, name))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        greedy.set_up()
        assert torch._dynamo.config.recompile_limit == 64
        assert torch._dynamo.config.fail_on_recompile_limit_hit


def test_every_runtime_and_way_is_a_contender(bench, greedy, toy_checkpoint, toy_bundle):
    made = bench.contenders(toy_checkpoint, Bundle.open(toy_bundle))
    names = {name for name, _ in made}
    assert names == {"ort-cuda", "trt", "trt-rtx", "CTranslate2", *greedy.MODES}
    assert tuple(greedy.MODES) == bench.TORCH
    with pytest.raises(NotTestedError, match="no recurrent model"):
        made["CTranslate2", "fp16"]()


def test_the_targets_are_made_in_a_copy_for_greedy_decoding(bench, monkeypatch, toy_bundle, tmp_path):
    """optimize itself has its own tests; here is what it is asked for, and that one that fails costs no other."""

    made = []

    def optimize(bundle, target, precision, **options):
        if (target, precision) == ("trt", "fp32"):
            raise ParityError("it says something else\nand where")
        profiles = options.get("profiles")
        made.append((target, precision, profiles and read_toml(BuildConfig, profiles)))

    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.optimize", optimize)
    before, missing = toy_bundle.read_bytes(), bench.Missing()
    copy = bench.with_targets(toy_bundle, tmp_path, 2.5, missing.attempt)
    assert copy.parent == tmp_path
    assert copy.read_bytes() == toy_bundle.read_bytes() == before
    greedily = BuildConfig(Buckets(batch=(1, 32), beam=1), max_build_minutes=2.5)
    assert made == [("ort-cuda", "fp32", None), ("ort-cuda", "fp16", None), ("trt", "fp16", greedily)]
    assert missing == {"optimize trt fp32": "it says something else"}


def test_sentences_are_the_files_or_the_golden_ones(bench, toy_bundle, toy_pairs):
    bundle = Bundle.open(toy_bundle)
    for corpus in (None, toy_pairs):
        found = bench.read_sources(toy_bundle, corpus, 20)
        assert len(found) == 20
        assert [len(source) for source in found] == sorted(len(source) for source in found)
        assert max(map(len, found)) <= bundle.manifest.max_source


@pytest.fixture
def run(bench, greedy, toy_checkpoint, toy_bundle, toy_pairs, tmp_path, monkeypatch):
    """The script on a machine with `gpu`; gives its exit code and its JSON."""
    monkeypatch.setattr(greedy, "set_up", lambda: None)
    monkeypatch.setattr(bench, "with_targets", lambda bundle, *_: bundle)

    def run(gpu: str | None, *more: str):
        monkeypatch.setattr(bench, "machine", lambda: {"gpu": gpu, "versions": {}})
        arguments = [str(toy_checkpoint), str(toy_bundle), str(toy_pairs), "--json", str(tmp_path / "found.json")]
        monkeypatch.setattr(sys, "argv", ["bench_gpu.py", *arguments, *more])
        return bench.main(), json.loads((tmp_path / "found.json").read_text())

    return run


@pytest.mark.usefixtures("quick")
def test_where_nothing_runs_the_script_says_why_and_gives_3(bench, run, monkeypatch, capsys):
    def absent():
        raise NotTestedError("no such GPU")

    monkeypatch.setattr(bench, "contenders", lambda *_: {("trt", "fp16"): absent})
    code, found = run("a GPU")
    printed = capsys.readouterr()
    assert code == 3
    assert "not available: trt fp16: no such GPU\n" in printed.out
    assert printed.out.count("not measured") == 3
    assert "nothing was measured: no contender runs here" in printed.err
    assert found["not available"]["trt fp16"] == "no such GPU"


def test_without_a_gpu_nothing_is_made(bench, run, monkeypatch, capsys):
    monkeypatch.setattr(bench, "contenders", None)
    monkeypatch.setattr(bench, "with_targets", None)
    assert run(None) == (3, {"gpu": None, "versions": {}, "rows": [], "not available": {}})
    assert "nothing was measured: no NVIDIA GPU answers" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_the_script_prints_and_writes_what_it_found(
    bench, greedy, run, toy_checkpoint, toy_bundle, monkeypatch, capsys
):
    def contenders(*_):
        return {
            ("torch eager", "fp32"): lambda: greedy.TorchGreedy(toy_checkpoint, "torch eager", "fp32", "cpu"),
            ("ort-cuda", "fp16"): lambda: bench.Ours(Bundle.open(toy_bundle), "ort-cpu", "fp32"),
            ("trt", "fp16"): None,
        }

    monkeypatch.setattr(bench, "contenders", contenders)
    monkeypatch.setattr(bench, "BATCHES", (1, 32))
    monkeypatch.setattr(bench, "measure_speed", lambda: bench.Speed(1e9, {"fp32": 1e9, "fp16": 4e9}, 5e-6))
    code, found = run("a GPU", "--sentences", "4", "--rounds", "1", "--skip", "trt")
    printed = capsys.readouterr().out
    assert code == 0
    assert found["not available"] == {}
    assert [(row["contender"], row["batch"]) for row in found["rows"]] == [
        *(("torch eager", 1), ("ort-cuda", 1)),
        *(("torch eager", 32), ("ort-cuda", 32)),
    ]
    assert found["speed"]["launch"] == 5e-6
    assert all(row["floor"] > 5e-6 for row in found["rows"])
    assert printed.count("\n| 32 | ") == 2
    assert "not measured" not in printed
