"""`edge-attn optimize --build` on existing graphs: what may change without `--force`, and what stays with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

from optimize_cases import run_optimize

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import update_bundle
from edge_attn.errors import ConfigError, NotTestedError, UsageError
from edge_attn.parity.results import LevelResult
from edge_attn.runtimes.optimize.optimize import optimize
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.runtime import build_config
from edge_attn.runtimes.verification.report import Report

LINES = "the red king\na small cat sees a dog\n"


def passing_report(bundle: Bundle, runtime, golden, levels=()) -> Report:
    return Report(str(bundle.path), "none", "none", "fp32", "nothing", 0, {}, [LevelResult("L3", "holds")])


@pytest.fixture
def unverified(monkeypatch) -> None:
    """Skip verification, which other tests cover."""
    monkeypatch.setattr("edge_attn.runtimes.optimize.build_target.check", passing_report)
    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.check", passing_report)


@pytest.fixture
def builds(monkeypatch, unverified) -> list[BuildConfig]:
    """Record the configuration of each engine instead of building it."""
    configs: list[BuildConfig] = []

    def build(bundle: Bundle, name: str, options) -> SimpleNamespace:
        configs.append(build_config(bundle.target(name, options.precision)))
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.open_runtime", build)
    return configs


@pytest.fixture
def tables(tmp_path) -> dict[str, Path]:
    contents = {
        "profiles": "workspace_mb = 64\n[buckets]\nbatch = [1, 4]\nbeam = 6\n",
        "another": "[buckets]\nbatch = [2]\n",
        "narrow": "[buckets]\nbeam = 1\n",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.toml").write_text(content)
    return {name: tmp_path / f"{name}.toml" for name in contents}


def test_profiles_and_minutes_apply_to_existing_graphs(copied, builds, tables):
    run_optimize(copied, "trt", "fp32", profiles=tables["profiles"])
    before = Bundle.open(copied)
    run_optimize(copied, "trt", "fp32", build=True, max_build_minutes=90.0)
    run_optimize(copied, "trt", "fp32", build=True)
    run_optimize(copied, "trt", "fp32", build=True, profiles=tables["another"], max_build_minutes=7.0)
    assert [(config.buckets.batch, config.workspace_mb, config.max_build_minutes) for config in builds] == [
        ((1, 4), 64, 90.0),
        ((1, 4), 64, 90.0),
        ((2,), 1024, 7.0),
    ]
    after = Bundle.open(copied)
    assert after.files() == before.files()
    assert after.manifest.targets["trt-fp32"].verification == before.manifest.targets["trt-fp32"].verification


def test_options_that_are_not_repeated_stay_with_force(copied, unverified, tables):
    run_optimize(copied, "trt", "fp32", profiles=tables["profiles"])
    run_optimize(copied, "trt", "fp32", force=True, max_build_minutes=90.0)
    config = build_config(Bundle.open(copied).target("trt", "fp32"))
    assert (config.buckets.batch, config.workspace_mb, config.max_build_minutes) == ((1, 4), 64, 90.0)
    run_optimize(copied, "trt", "fp32", force=True, profiles=tables["another"])
    config = build_config(Bundle.open(copied).target("trt", "fp32"))
    assert (config.buckets.batch, config.workspace_mb, config.max_build_minutes) == ((2,), 1024, 60.0)


def test_existing_graphs_are_built_from_a_read_only_bundle(copied, builds, monkeypatch):
    run_optimize(copied, "trt", "fp32")
    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.check_output", None)
    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.update_bundle", None)
    run_optimize(copied, "trt", "fp32", build=True)
    assert builds == [BuildConfig()]


@pytest.mark.parametrize("what", ["min_version", "calibration", "plugins"])
def test_options_for_other_graphs_need_force(copied, builds, tmp_path, what):
    lines, other_lines = tmp_path / "lines.txt", tmp_path / "others.txt"
    lines.write_text(LINES)
    other_lines.write_text("a cat\n")
    same = {"min_version": "10.13.2.0", "calibration": lines, "plugins": ("AdditiveAttention",)}
    run_optimize(copied, "trt", "int8", **{name: same[name] for name in ("min_version", "calibration")})
    changed = {"min_version": "10.3", "calibration": other_lines, "plugins": ("AdditiveAttention",)}[what]
    before, option = copied.read_bytes(), "plugin" if what == "plugins" else what.replace("_", "-")
    with pytest.raises(UsageError, match=f"already contains trt-int8, built with another --{option} or none; leave"):
        optimize(copied, "trt", "int8", build=True, log=lambda line: None, **{what: changed})
    assert builds == []
    if what != "plugins":
        run_optimize(copied, "trt", "int8", build=True, **{what: same[what]})
    assert copied.read_bytes() == before


def test_too_wide_golden_beam_is_a_warning(copied, unverified, tables, monkeypatch):
    def none(*arguments):
        raise NotTestedError("there is none")

    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.open_runtime", none)
    lines = run_optimize(copied, "trt", "fp32", profiles=tables["narrow"])
    assert lines[0].startswith("engines for a beam of up to 1 cannot run the golden beam search, whose beam is 5: L3")
    with pytest.raises(NotTestedError):
        optimize(copied, "trt", "fp32", build=True, log=lines.append)
    assert lines.count(lines[0]) == 2
    assert not [line for line in run_optimize(copied, "trt", "fp16") if "golden beam" in line]


@pytest.mark.parametrize("build", [{"color": "red"}, {"workspace_mb": "much"}])
def test_damaged_configuration_is_refused(copied, unverified, tables, build):
    run_optimize(copied, "trt", "fp32")

    def damaged(bundle: Bundle):
        stored = bundle.manifest.targets["trt-fp32"]
        targets = {stored.name: dataclasses.replace(stored, settings={**stored.settings, "build": build})}
        return dataclasses.replace(bundle.manifest, targets=targets), bundle.files()

    update_bundle(copied, damaged)
    with pytest.raises(ConfigError, match=r"toy.zip: targets: trt-fp32: build"):
        optimize(copied, "trt", "fp32", force=True, log=lambda line: None)
    run_optimize(copied, "trt", "fp32", force=True, profiles=tables["profiles"])


def test_level_that_engines_cannot_run_is_not_tested(copied, tables, jetson):
    lines: list[str] = []
    options = {"profiles": tables["narrow"], "build": True, "cache_dir": jetson.cache}
    assert optimize(copied, "trt", "fp32", log=lines.append, **options) == 3
    shown = lines[-1].splitlines()
    assert next(line for line in shown if line.startswith("L3")).endswith(
        "not tested (the engine was built for up to 8 sentences of up to 20 tokens with a beam of up to 1, got 8 of "
        "7 with a beam of 5; request less, or build it for more (batch, src and beam in the table buckets))"
    )
    assert [line[:2] for line in shown if " holds " in line] == ["L1", "L2", "L5"]
    assert shown[-1] == "parity NOT TESTED"
