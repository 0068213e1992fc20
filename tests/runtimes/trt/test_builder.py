"""Building an engine, on a fake builder: options, progress, refusals, the timing cache."""

from __future__ import annotations

import dataclasses
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_build import FakeBuild, run, say, stepping

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.config.validation import read_toml
from edge_attn.errors import ConfigError, InputError, NotTestedError
from edge_attn.runtimes.system_memory import memory
from edge_attn.runtimes.trt import builder as trt_build
from edge_attn.runtimes.trt.api import TensorRT
from edge_attn.runtimes.trt.builder import BuildConfig, check_memory, engine_for
from edge_attn.runtimes.trt.cudart import Gpu
from edge_attn.runtimes.trt.engine_cache import EngineCache
from edge_attn.runtimes.trt.plugins import Plugin
from edge_attn.runtimes.trt.profiles import Buckets
from edge_attn.runtimes.trt.progress import Progress


@pytest.fixture
def bundle(toy_bundle) -> Bundle:
    return Bundle.open(toy_bundle)


def test_an_engine_is_built_strongly_typed_with_every_profile(bundle):
    fake = FakeBuild(bundle.manifest.graphs["step"], lambda fake: memoryview(b"engine"))  # type: ignore[arg-type]
    config = BuildConfig(Buckets(batch=(1, 2), src=(4, 10)), workspace_mb=64, optimization_level=2)
    assert run(bundle, fake, config) == b"engine"
    assert fake.flags == 1 << 1
    assert fake.limits == {"workspace": 64 * 1024 * 1024}
    assert fake.options.builder_optimization_level == 2
    assert len(fake.profiles) == 6
    assert fake.profiles[0].shapes["tokens"] == ((1, 1), (1, 5), (1, 5))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("tf32", "cleared"), [(False, ["TF32"]), (True, [])])
def test_fp32_is_fp32_unless_tf32_is_asked_for(bundle, tf32, cleared):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    run(bundle, fake, BuildConfig(tf32=tf32))
    assert fake.cleared == cleared


@pytest.mark.parametrize(
    ("messages", "error", "said"),
    [
        ([], InputError, "cannot be built with tensorrt 10.3.0: no reason is given"),
        (["first", "last\n reason"], InputError, "cannot be built with tensorrt 10.3.0: last reason"),
        (["[defaultAllocator.cpp] Requested size was 9 bytes: out of memory"], NotTestedError, "memory ran out"),
        (["Error Code 2: OutOfMemory (no further information)", "then"], NotTestedError, "less than 1024 MB"),
        (
            ["Tactic Selection: no tactics to implement the operation within workspace limit. Consider"],
            InputError,
            "in 1024 MB of workspace; give more to workspace_mb",
        ),
        (["no implementation for node due to insufficient workspace. See"], InputError, "give more to workspace_mb"),
    ],
)
def test_a_build_that_fails_is_a_sentence(bundle, messages, error, said):
    def build(fake: FakeBuild) -> None:
        say(fake, *messages)

    with pytest.raises(error, match=said):
        run(bundle, FakeBuild(bundle.manifest.graphs["encoder"], build))


def test_a_tensorrt_that_does_not_start_is_a_sentence(bundle):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    fake.starts = False
    with pytest.raises(NotTestedError, match=r"does not start here: CUDA initialization failure .* 35; run: edge-attn"):
        run(bundle, fake)


def test_a_profile_that_is_not_taken_is_a_sentence(bundle):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    fake.takes_profiles = False
    with pytest.raises(InputError, match=r"does not take the profile batch 1, src 16"):
        run(bundle, fake)


def test_sizes_that_tensorrt_cannot_hold_together_are_a_sentence(bundle):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    with pytest.raises(InputError, match=r"does not take the profile batch 3000000, src 16: Shape .* other shapes\.$"):
        run(bundle, fake, BuildConfig(Buckets(batch=(3000000,))))


def test_too_little_memory_for_the_host_is_the_same_sentence(bundle):
    def build(fake: FakeBuild) -> None:
        raise MemoryError

    with pytest.raises(NotTestedError, match="memory ran out while the engine was built"):
        run(bundle, FakeBuild(bundle.manifest.graphs["encoder"], build))


@pytest.mark.parametrize(("megabytes", "fits"), [(300, True), (255, False)])
def test_too_little_memory_is_said_before_the_build(megabytes, fits):
    if fits:
        check_memory(1000, megabytes * 1024**2, "graph")
        return
    with pytest.raises(
        NotTestedError, match="graph: building its engine needs about 256 MB of memory, 255 MB are free"
    ):
        check_memory(1000, megabytes * 1024**2, "graph")


MEMINFO = "MemTotal: 9 kB\nMemAvailable:    2048 kB"
CGROUP = "/sys/fs/cgroup/memory."


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": MEMINFO}, 2048 * 1024),
        ({"/proc/meminfo": MEMINFO, f"{CGROUP}max": "5000", f"{CGROUP}current": "3000"}, 2000),
        ({"/proc/meminfo": MEMINFO, f"{CGROUP}max": "max", f"{CGROUP}current": "3000"}, 2048 * 1024),
        ({}, sys.maxsize),
    ],
)
def test_the_memory_that_is_free_in_a_container_too(monkeypatch, files, expected):
    monkeypatch.setattr(trt_build, "memory", lambda: memory(lambda path: files.get(path, "")))
    assert trt_build.available_memory() == expected


def test_files_that_a_container_has_read_are_memory_that_it_can_have(monkeypatch):
    files = {"max": "5000", "current": "4900", "stat": "anon 100\ninactive_file 4000\nactive_file 800"}
    known = {"/proc/meminfo": MEMINFO, **{f"{CGROUP}{name}": text for name, text in files.items()}}
    monkeypatch.setattr(trt_build, "memory", lambda: memory(lambda path: known.get(path, "")))
    assert trt_build.available_memory() == 4100


# ---- time


def test_progress_only_grows(bundle):
    seen = []
    run(bundle, FakeBuild(bundle.manifest.graphs["encoder"], stepping), report=lambda share, what: seen.append(share))
    assert seen == sorted(seen)
    assert seen[:3] == [0.05, 0.1, 0.1]
    assert seen[-1] == 1.0


def test_a_build_that_takes_too_long_is_ended(bundle):
    config = BuildConfig(max_build_minutes=1e-9)
    with pytest.raises(NotTestedError, match=r"took longer than 1e-09 minutes and was ended$"):
        run(bundle, FakeBuild(bundle.manifest.graphs["encoder"], stepping), config)


def test_an_interruption_ends_the_build_and_goes_on_after_it(bundle):
    calls = []

    def report(share: float, what: str) -> None:
        calls.append(share)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bundle, FakeBuild(bundle.manifest.graphs["encoder"], stepping), report=report)
    assert len(calls) == 3


def test_phases_that_tensorrt_never_announced_do_no_harm():
    progress = Progress(lambda share, what: None, 60)
    assert progress.step("unknown", 3)
    progress.finish("unknown")
    progress.start("empty", None, 0)
    assert progress.step("empty", 0)


def test_phases_may_be_told_by_several_threads_at_once():
    faults: list[Exception] = []
    progress = Progress(lambda share, what: None, 60)

    def tell(name: str) -> None:
        try:
            for step in range(3000):
                progress.start(name, None, 2)
                progress.step(name, step % 2)
                progress.finish(name)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=tell, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_a_fault_while_progress_is_told_is_not_taken_for_tensorrts(bundle):
    def report(share: float, what: str) -> None:
        raise ValueError("the bar broke")

    with pytest.raises(RuntimeError, match="could not be followed: ValueError: the bar broke"):
        run(bundle, FakeBuild(bundle.manifest.graphs["encoder"], stepping), report=report)


# ---- the timing cache


def test_what_a_build_measured_shortens_the_next_one(bundle, tmp_path):
    path = tmp_path / "not yet" / "Orin.timing"
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    run(bundle, fake, timing=path)
    assert path.read_bytes() == b"measured"
    run(bundle, fake, timing=path)
    assert fake.timings == [b"", b"measured"]


def test_measurements_that_cannot_be_read_are_left_out(bundle, tmp_path):
    path = tmp_path / "Orin.timing"
    path.write_bytes(b"unreadable")
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    assert run(bundle, fake, timing=path) == b"engine"
    assert fake.timings == [b""]


def test_measurements_that_do_not_fit_are_left_out(bundle, tmp_path):
    path = tmp_path / "Orin.timing"
    path.write_bytes(b"of another version")
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    fake.takes_timing = False
    assert run(bundle, fake, timing=path) == b"engine"
    assert fake.timings == [b"of another version", b""]


def test_measurements_that_cannot_be_kept_do_not_cost_the_engine(bundle, tmp_path):
    (tmp_path / "file").touch()
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    assert run(bundle, fake, timing=tmp_path / "file" / "Orin.timing") == b"engine"


def test_tensorrt_rtx_measures_nothing(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    run(bundle, fake, timing=tmp_path / "Orin.timing", tensorrt=fake.tensorrt((1, 7, 1), rtx=True))
    assert fake.timings == []
    assert list(tmp_path.iterdir()) == []


# ---- through the cache


GPU = Gpu("Orin", (8, 7), 8, True, 8 << 30, 4 << 30)


def fetch(bundle: Bundle, folder: Path, tensorrt: TensorRT, gpu: Gpu = GPU, **more: Any) -> tuple[bytes, list[str]]:
    """The engine, and what was said; something is said where, and only where, it is built."""
    target = Target("trt", "fp32", bundle.manifest.graphs)
    said: list[str] = []
    config = more.pop("config", BuildConfig())
    plan = engine_for(tensorrt, bundle, target, "encoder", EngineCache(folder), gpu, config, said.append, **more)
    assert plan.built == bool(said)
    return plan.engine, said


def test_an_engine_is_built_on_first_use_and_then_found(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    assert fetch(bundle, tmp_path, fake.tensorrt()) == (
        b"engine",
        ["toy-bundle.zip: encoder for trt-fp32: building the engine (there is none yet)"],
    )
    fake.build = lambda fake: None
    assert fetch(bundle, tmp_path, fake.tensorrt()) == (b"engine", [])
    assert sorted(path.suffix for path in tmp_path.rglob("*.*")) == [".engine", ".json", ".timing"]


A_PLUGIN = Plugin("AdditiveAttention", lambda tensorrt, architecture: None, lambda: "abc")
OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"gpu": dataclasses.replace(GPU, name="Thor")}, "the GPU was Orin, 8 SM, is Thor, 8 SM"),
    ({"gpu": dataclasses.replace(GPU, multiprocessors=16)}, "the GPU was Orin, 8 SM, is Orin, 16 SM"),
    ({"gpu": dataclasses.replace(GPU, compute_capability=(11, 0))}, "the compute capability was 8.7, is 11.0"),
    ({"version": (10, 16, 2)}, "TensorRT was tensorrt 10.3.0, is tensorrt 10.16.2"),
    ({"config": BuildConfig(Buckets(beam=2), workspace_mb=9)}, "the build settings changed"),
    ({"config": BuildConfig(tf32=True)}, "the build settings changed"),
    ({"config": BuildConfig(Buckets(batch=(1,)))}, "the profiles changed"),
    ({"plugins": {"AdditiveAttention": A_PLUGIN}}, "the plugins changed"),
]


@pytest.mark.parametrize(("other", "reason"), OTHERS)
def test_an_engine_of_anything_else_is_built_again_with_the_reason(bundle, tmp_path, other, reason):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    fetch(bundle, tmp_path, fake.tensorrt())
    fake.build = lambda fake: b"another"
    engine, said = fetch(bundle, tmp_path, fake.tensorrt(other.pop("version", (10, 3, 0))), **other)
    assert engine == b"another"
    assert reason in said[0]


def test_a_plugin_is_compiled_only_where_the_engine_is_built(bundle, tmp_path):
    compiled: list[str] = []
    plugin = Plugin("AdditiveAttention", lambda tensorrt, architecture: compiled.append(architecture), lambda: "abc")
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    for _ in range(2):
        fetch(bundle, tmp_path, fake.tensorrt(), plugins={plugin.op: plugin})
    assert compiled == ["sm_87"]


def test_a_build_that_takes_too_long_names_the_command_that_gives_it_more(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], stepping)
    command = f"edge-attn optimize {bundle.path} --target trt --precision fp32 --build --max-build-minutes 2e-09"
    with pytest.raises(NotTestedError, match=rf"was ended; give it more: {re.escape(command)}; or build for fewer"):
        fetch(bundle, tmp_path, fake.tensorrt(), config=BuildConfig(max_build_minutes=1e-9))
    assert not list(tmp_path.rglob("*.engine"))


def test_more_free_memory_is_no_other_gpu(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    fetch(bundle, tmp_path, fake.tensorrt())
    assert fetch(bundle, tmp_path, fake.tensorrt(), gpu=dataclasses.replace(GPU, free=1, total=2))[1] == []


def test_a_gpu_without_free_memory_is_said_before_the_build(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    full = dataclasses.replace(GPU, name="H200", integrated=False, free=100 * 1024**2)
    with pytest.raises(NotTestedError, match=r"graphs/encoder.onnx on H200: .* 100 MB are free"):
        fetch(bundle, tmp_path, fake.tensorrt(), gpu=full)
    assert not list(tmp_path.rglob("*.engine"))


def test_on_a_jetson_the_file_cache_is_no_reason_not_to_build(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    assert fetch(bundle, tmp_path, fake.tensorrt(), gpu=dataclasses.replace(GPU, free=100 * 1024**2))[0] == b"engine"


# ---- the options


def test_the_options_are_a_toml_file(tmp_path):
    path = tmp_path / "trt.toml"
    path.write_text("workspace_mb = 256\n[buckets]\nbatch = [1, 4]\nbeam = 3\n", encoding="utf-8")
    assert read_toml(BuildConfig, path) == BuildConfig(Buckets((1, 4), beam=3), workspace_mb=256)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workspace = 1", "unknown key 'workspace'"),
        ("workspace_mb = 'much'", "workspace_mb must be of type int"),
        ("workspace_mb = 0", "workspace_mb must be at least 1"),
        ("max_build_minutes = 0", "max_build_minutes must be a number more than 0"),
        ("max_build_minutes = nan", "max_build_minutes must be a number more than 0"),
        ("optimization_level = 6", "optimization_level must lie between 0 and 5"),
        ("[buckets]\nbatch = [2, 1]", "batch must be increasing sizes"),
        ("workspace_mb = 99999999999999999999", "workspace_mb must be at most 1099511627775"),
        ("cache_mb = 99999999999999999999", "cache_mb must be at most 1099511627775"),
        ("[buckets]\nbatch = [3000000000]", "batch must be at most 2147483647, got 3000000000"),
        ("[buckets]\nbatch = 1", r"buckets: batch must be a list"),
        ("a = ", "is not TOML"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, text, said):
    path = tmp_path / "trt.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        read_toml(BuildConfig, path)


def test_options_that_are_not_there_are_a_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_toml(BuildConfig, tmp_path / "trt.toml")
