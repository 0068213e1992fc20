"""Builds of engines on a fake builder: options, progress, errors, timing cache, engine cache."""

from __future__ import annotations

import dataclasses
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_build import FakeBuild, build_in_steps, log_errors, run

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.manifest import Target
from edge_attn.config.validation import read_toml
from edge_attn.errors import ConfigError, InputError, NotTestedError
from edge_attn.runtimes.trt import builder as builder
from edge_attn.runtimes.trt.api import TensorRT
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.builder import check_memory, engine_for
from edge_attn.runtimes.trt.cudart import Gpu
from edge_attn.runtimes.trt.engine_cache import EngineCache
from edge_attn.runtimes.trt.plugins import Plugin
from edge_attn.runtimes.trt.profiles import Buckets
from edge_attn.runtimes.trt.progress import BuildProgress
from edge_attn.system_memory import system_memory


@pytest.fixture
def bundle(toy_bundle) -> Bundle:
    return Bundle.open(toy_bundle)


def test_engine_is_strongly_typed_and_has_all_profiles(bundle):
    fake = FakeBuild(bundle.manifest.graphs["step"], lambda fake: memoryview(b"engine"))  # type: ignore[arg-type]
    config = BuildConfig(Buckets(batch=(1, 2), src=(4, 10)), workspace_mb=64, optimization_level=2)
    assert run(bundle, fake, config) == b"engine"
    assert fake.flags == 1 << 1
    assert fake.limits == {"workspace": 64 * 1024 * 1024}
    assert fake.options.builder_optimization_level == 2
    assert len(fake.profiles) == 6
    assert fake.profiles[0].shapes["tokens"] == ((1, 1), (1, 5), (1, 5))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("tf32", "cleared"), [(False, ["TF32"]), (True, [])])
def test_tf32_is_off_by_default(bundle, tf32, cleared):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    run(bundle, fake, BuildConfig(tf32=tf32))
    assert fake.cleared == cleared


@pytest.mark.parametrize(
    ("messages", "error", "text"),
    [
        ([], InputError, "cannot be built with tensorrt 10.3.0: TensorRT logs no reason"),
        (["first", "last\n reason"], InputError, "cannot be built with tensorrt 10.3.0: last reason"),
        (["[defaultAllocator.cpp] Requested size was 9 bytes: out of memory"], NotTestedError, "less than 1024, build"),
        (
            ["Error Code 2: OutOfMemory (no further information)", "then"],
            NotTestedError,
            "memory ran out",
        ),
        (
            ["Tactic Selection: no tactics to implement the operation within workspace limit. Consider"],
            InputError,
            "in 1024 MB of workspace; increase workspace_mb",
        ),
        (["no implementation for node due to insufficient workspace. See"], InputError, "increase workspace_mb"),
    ],
)
def test_failed_build_reports_the_reason(bundle, messages, error, text):
    def build(fake: FakeBuild) -> None:
        log_errors(fake, *messages)

    with pytest.raises(error, match=text):
        run(bundle, FakeBuild(bundle.manifest.graphs["encoder"], build))


def test_tensorrt_that_does_not_start_is_not_tested(bundle):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    fake.starts = False
    with pytest.raises(NotTestedError, match=r"does not start here: CUDA initialization failure .* 35; run: edge-attn"):
        run(bundle, fake)


def test_rejected_profile_is_reported(bundle):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    fake.accepts_profiles = False
    with pytest.raises(InputError, match=r"rejects the profile batch 1, src 16"):
        run(bundle, fake)


def test_rejected_sizes_name_tensorrts_reason(bundle):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    with pytest.raises(InputError, match=r"rejects the profile batch 3000000, src 16: Shape .* other shapes\.$"):
        run(bundle, fake, BuildConfig(Buckets(batch=(3000000,))))


def test_memory_error_is_not_tested(bundle):
    def build(fake: FakeBuild) -> None:
        raise MemoryError

    with pytest.raises(NotTestedError, match="memory ran out while the engine was built"):
        run(bundle, FakeBuild(bundle.manifest.graphs["encoder"], build))


@pytest.mark.parametrize(("megabytes", "fits"), [(300, True), (255, False)])
def test_check_memory_reports_too_little_memory(megabytes, fits):
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
def test_available_memory_is_within_the_container_limit(monkeypatch, files, expected):
    monkeypatch.setattr(builder, "system_memory", lambda: system_memory(lambda path: files.get(path, "")))
    assert builder.available_memory() == expected


def test_file_cache_of_a_container_is_available(monkeypatch):
    files = {"max": "5000", "current": "4900", "stat": "anon 100\ninactive_file 4000\nactive_file 800"}
    all_files = {"/proc/meminfo": MEMINFO, **{f"{CGROUP}{name}": text for name, text in files.items()}}
    monkeypatch.setattr(builder, "system_memory", lambda: system_memory(lambda path: all_files.get(path, "")))
    assert builder.available_memory() == 4100


# ---- time


def test_progress_never_decreases(bundle):
    shares: list[float] = []
    run(
        bundle,
        FakeBuild(bundle.manifest.graphs["encoder"], build_in_steps),
        report=lambda share, what: shares.append(share),
    )
    assert shares == sorted(shares)
    assert shares[:3] == [0.05, 0.1, 0.1]
    assert shares[-1] == 1.0


def test_build_is_stopped_at_its_time_limit(bundle):
    config = BuildConfig(max_build_minutes=1e-9)
    with pytest.raises(NotTestedError, match=r"took longer than 1e-09 minutes and was stopped$"):
        run(bundle, FakeBuild(bundle.manifest.graphs["encoder"], build_in_steps), config)


def test_interruption_stops_the_build(bundle):
    calls = []

    def report(share: float, what: str) -> None:
        calls.append(share)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bundle, FakeBuild(bundle.manifest.graphs["encoder"], build_in_steps), report=report)
    assert len(calls) == 3


def test_unknown_phases_are_ignored():
    progress = BuildProgress(lambda share, what: None, 60)
    assert progress.step("unknown", 3)
    progress.finish("unknown")
    progress.start("empty", None, 0)
    assert progress.step("empty", 0)


def test_progress_is_thread_safe():
    faults: list[Exception] = []
    progress = BuildProgress(lambda share, what: None, 60)

    def update(name: str) -> None:
        try:
            for step in range(3000):
                progress.start(name, None, 2)
                progress.step(name, step % 2)
                progress.finish(name)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=update, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_error_in_the_progress_callback_is_reported(bundle):
    def report(share: float, what: str) -> None:
        raise ValueError("broken bar")

    with pytest.raises(RuntimeError, match="progress failed: ValueError: broken bar"):
        run(bundle, FakeBuild(bundle.manifest.graphs["encoder"], build_in_steps), report=report)


# ---- the timing cache


def test_timing_cache_is_reused(bundle, tmp_path):
    path = tmp_path / "not yet" / "Orin.timing"
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    run(bundle, fake, timing=path)
    assert path.read_bytes() == b"measured"
    run(bundle, fake, timing=path)
    assert fake.timings == [b"", b"measured"]


def test_unreadable_timing_cache_is_ignored(bundle, tmp_path):
    path = tmp_path / "Orin.timing"
    path.write_bytes(b"unreadable")
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    assert run(bundle, fake, timing=path) == b"engine"
    assert fake.timings == [b""]


def test_timing_cache_of_another_version_is_ignored(bundle, tmp_path):
    path = tmp_path / "Orin.timing"
    path.write_bytes(b"of another version")
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    fake.accepts_timing = False
    assert run(bundle, fake, timing=path) == b"engine"
    assert fake.timings == [b"of another version", b""]


def test_unwritable_timing_cache_is_ignored(bundle, tmp_path):
    (tmp_path / "file").touch()
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    assert run(bundle, fake, timing=tmp_path / "file" / "Orin.timing") == b"engine"


def test_rtx_has_no_timing_cache(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    run(bundle, fake, timing=tmp_path / "Orin.timing", tensorrt=fake.tensorrt((1, 7, 1), rtx=True))
    assert fake.timings == []
    assert list(tmp_path.iterdir()) == []


# ---- through the cache


GPU = Gpu("Orin", (8, 7), 8, True, 8 << 30, 4 << 30)


def fetch(bundle: Bundle, folder: Path, tensorrt: TensorRT, gpu: Gpu = GPU, **options: Any) -> tuple[bytes, list[str]]:
    """Return the engine and the logged lines, which there are only if it is built."""
    target = Target("trt", "fp32", bundle.manifest.graphs)
    lines: list[str] = []
    config = options.pop("config", BuildConfig())
    plan = engine_for(tensorrt, bundle, target, "encoder", EngineCache(folder), gpu, config, lines.append, **options)
    assert plan.built == bool(lines)
    return plan.engine, lines


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"modules": {"graphs/encoder.onnx": {"node": "model.encoder"}}}, {"node": "model.encoder"}),
        ({"modules": {"graphs/step.onnx": {"node": "model.decoder"}}}, {}),
        ({"modules": None}, {}),
        ({}, {}),
    ],
)
def test_engine_is_built_with_the_recorded_modules(bundle, tmp_path, monkeypatch, settings, expected):
    received: list[object] = []
    monkeypatch.setattr(builder, "build_engine", lambda *arguments: received.append(arguments[-1]) or b"engine")
    target = Target("trt", "fp32", bundle.manifest.graphs, settings)
    tensorrt = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine").tensorrt()
    engine_for(tensorrt, bundle, target, "encoder", EngineCache(tmp_path), GPU, BuildConfig(), lambda line: None)
    assert received == [expected]


def test_engine_is_built_on_first_use_and_then_read(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    assert fetch(bundle, tmp_path, fake.tensorrt()) == (
        b"engine",
        ["toy-bundle.zip: encoder for trt-fp32: building the engine (there is none yet)"],
    )
    fake.build = lambda fake: None
    assert fetch(bundle, tmp_path, fake.tensorrt()) == (b"engine", [])
    assert sorted(path.suffix for path in tmp_path.rglob("*.*")) == [".engine", ".json", ".timing"]


PLUGIN = Plugin("AdditiveAttention", lambda tensorrt, architecture: None, lambda: "abc")
CHANGED_KEYS: list[tuple[dict[str, Any], str]] = [
    ({"gpu": dataclasses.replace(GPU, name="Thor")}, "the GPU was Orin, 8 SM, is Thor, 8 SM"),
    ({"gpu": dataclasses.replace(GPU, multiprocessors=16)}, "the GPU was Orin, 8 SM, is Orin, 16 SM"),
    ({"gpu": dataclasses.replace(GPU, compute_capability=(11, 0))}, "the compute capability was 8.7, is 11.0"),
    ({"version": (10, 16, 2)}, "TensorRT was tensorrt 10.3.0, is tensorrt 10.16.2"),
    ({"config": BuildConfig(Buckets(beam=2), workspace_mb=9)}, "the build settings changed"),
    ({"config": BuildConfig(tf32=True)}, "the build settings changed"),
    ({"config": BuildConfig(Buckets(batch=(1,)))}, "the profiles changed"),
    ({"plugins": {"AdditiveAttention": PLUGIN}}, "the plugins changed"),
]


@pytest.mark.parametrize(("changed", "reason"), CHANGED_KEYS)
def test_changed_key_builds_again_and_reports_the_change(bundle, tmp_path, changed, reason):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    fetch(bundle, tmp_path, fake.tensorrt())
    fake.build = lambda fake: b"another"
    engine, lines = fetch(bundle, tmp_path, fake.tensorrt(changed.pop("version", (10, 3, 0))), **changed)
    assert engine == b"another"
    assert reason in lines[0]


def test_plugin_is_compiled_only_for_a_build(bundle, tmp_path):
    compiled: list[str] = []
    plugin = Plugin("AdditiveAttention", lambda tensorrt, architecture: compiled.append(architecture), lambda: "abc")
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    for _ in range(2):
        fetch(bundle, tmp_path, fake.tensorrt(), plugins={plugin.op: plugin})
    assert compiled == ["sm_87"]


def test_stopped_build_names_the_command_for_more_time(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], build_in_steps)
    command = f"edge-attn optimize {bundle.path} --target trt --precision fp32 --build --max-build-minutes 2e-09"
    with pytest.raises(NotTestedError, match=rf"was stopped; to allow more, run: {re.escape(command)}; or"):
        fetch(bundle, tmp_path, fake.tensorrt(), config=BuildConfig(max_build_minutes=1e-9))
    assert not list(tmp_path.rglob("*.engine"))


def test_free_memory_is_not_part_of_the_key(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    fetch(bundle, tmp_path, fake.tensorrt())
    assert fetch(bundle, tmp_path, fake.tensorrt(), gpu=dataclasses.replace(GPU, free=1, total=2))[1] == []


def test_full_gpu_is_reported_before_the_build(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    full = dataclasses.replace(GPU, name="H200", integrated=False, free=100 * 1024**2)
    with pytest.raises(NotTestedError, match=r"graphs/encoder.onnx on H200: .* 100 MB are free"):
        fetch(bundle, tmp_path, fake.tensorrt(), gpu=full)
    assert not list(tmp_path.rglob("*.engine"))


def test_integrated_gpu_memory_is_not_checked_twice(bundle, tmp_path):
    fake = FakeBuild(bundle.manifest.graphs["encoder"], lambda fake: b"engine")
    assert fetch(bundle, tmp_path, fake.tensorrt(), gpu=dataclasses.replace(GPU, free=100 * 1024**2))[0] == b"engine"


# ---- the options


def test_build_config_is_read_from_toml(tmp_path):
    path = tmp_path / "trt.toml"
    path.write_text("workspace_mb = 256\n[buckets]\nbatch = [1, 4]\nbeam = 3\n", encoding="utf-8")
    assert read_toml(BuildConfig, path) == BuildConfig(Buckets((1, 4), beam=3), workspace_mb=256)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workspace = 1", "unknown key 'workspace'"),
        ("workspace_mb = 'much'", "workspace_mb must be of type int"),
        ("workspace_mb = 0", "workspace_mb must be at least 1"),
        ("max_build_minutes = 0", "max_build_minutes must be a number more than 0"),
        ("max_build_minutes = nan", "max_build_minutes must be a number more than 0"),
        ("optimization_level = 6", "optimization_level must be between 0 and 5"),
        ("[buckets]\nbatch = [2, 1]", "batch must be increasing sizes"),
        ("workspace_mb = 1099511627776", "workspace_mb must be at most 1099511627775"),
        ("cache_mb = 1099511627776", "cache_mb must be at most 1099511627775"),
        ("workspace_mb = 99999999999999999999", r"workspace_mb must be less than 2\*\*63 in magnitude"),
        ("[buckets]\nbatch = [3000000000]", "batch must be at most 2147483647, got 3000000000"),
        ("[buckets]\nbatch = 1", r"buckets: batch must be a list"),
        ("a = ", "is not TOML"),
    ],
)
def test_invalid_build_config_is_rejected(tmp_path, text, message):
    path = tmp_path / "trt.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_toml(BuildConfig, path)


def test_missing_build_config_is_reported(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_toml(BuildConfig, tmp_path / "trt.toml")
