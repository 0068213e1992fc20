"""`edge-attn optimize --build` on what the bundle holds: what may change without `--force`, and what stays with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("onnx", reason="onnx is not installed, and torch is not installed: a device needs neither")

from optimize_cases import quietly

from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import update_bundle
from edge_attn.errors import ConfigError, NotTestedError, UsageError
from edge_attn.parity.results import LevelResult
from edge_attn.runtimes.optimize.optimize import optimize
from edge_attn.runtimes.trt.builder import BuildConfig
from edge_attn.runtimes.trt.runtime import build_config
from edge_attn.runtimes.verification.report import Report

LINES = "the red king\na small cat sees a dog\n"


def holds(bundle: Bundle, runtime, said, levels=()) -> Report:
    return Report(str(bundle.path), "none", "none", "fp32", "nothing", 0, {}, [LevelResult("L3", "holds")])


@pytest.fixture
def unverified(monkeypatch) -> None:
    """What is made is taken as it is: other tests verify it."""
    monkeypatch.setattr("edge_attn.runtimes.optimize.build_target.check", holds)
    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.check", holds)


@pytest.fixture
def builds(monkeypatch, unverified) -> list[BuildConfig]:
    """How each engine would be built."""
    found: list[BuildConfig] = []

    def build(bundle: Bundle, name: str, options) -> SimpleNamespace:
        found.append(build_config(bundle.target(name, options.precision)))
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.open_runtime", build)
    return found


@pytest.fixture
def tables(tmp_path) -> dict[str, Path]:
    contents = {
        "profiles": "workspace_mb = 64\n[buckets]\nbatch = [1, 4]\nbeam = 6\n",
        "others": "[buckets]\nbatch = [2]\n",
        "narrow": "[buckets]\nbeam = 1\n",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.toml").write_text(content)
    return {name: tmp_path / f"{name}.toml" for name in contents}


def test_profiles_and_minutes_change_how_what_is_there_is_built(copied, builds, tables):
    quietly(copied, "trt", "fp32", profiles=tables["profiles"])
    before = Bundle.open(copied)
    quietly(copied, "trt", "fp32", build=True, max_build_minutes=90.0)
    quietly(copied, "trt", "fp32", build=True)
    quietly(copied, "trt", "fp32", build=True, profiles=tables["others"], max_build_minutes=7.0)
    assert [(made.buckets.batch, made.workspace_mb, made.max_build_minutes) for made in builds] == [
        ((1, 4), 64, 90.0),
        ((1, 4), 64, 90.0),
        ((2,), 1024, 7.0),
    ]
    after = Bundle.open(copied)
    assert after.files() == before.files()
    assert after.manifest.targets["trt-fp32"].verification == before.manifest.targets["trt-fp32"].verification


def test_what_is_not_said_again_stays_with_force(copied, unverified, tables):
    quietly(copied, "trt", "fp32", profiles=tables["profiles"])
    quietly(copied, "trt", "fp32", force=True, max_build_minutes=90.0)
    made = build_config(Bundle.open(copied).target("trt", "fp32"))
    assert (made.buckets.batch, made.workspace_mb, made.max_build_minutes) == ((1, 4), 64, 90.0)
    quietly(copied, "trt", "fp32", force=True, profiles=tables["others"])
    made = build_config(Bundle.open(copied).target("trt", "fp32"))
    assert (made.buckets.batch, made.workspace_mb, made.max_build_minutes) == ((2,), 1024, 60.0)


def test_what_is_built_as_it_is_may_lie_where_nothing_can_be_written(copied, builds, monkeypatch):
    quietly(copied, "trt", "fp32")
    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.check_output", None)
    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.update_bundle", None)
    quietly(copied, "trt", "fp32", build=True)
    assert builds == [BuildConfig()]


@pytest.mark.parametrize("what", ["min_version", "calibration", "plugins"])
def test_what_would_make_other_graphs_needs_force(copied, builds, tmp_path, what):
    lines, others = tmp_path / "lines.txt", tmp_path / "others.txt"
    lines.write_text(LINES)
    others.write_text("a cat\n")
    same = {"min_version": "10.13.2.0", "calibration": lines, "plugins": ("AdditiveAttention",)}
    quietly(copied, "trt", "int8", **{name: same[name] for name in ("min_version", "calibration")})
    changed = {"min_version": "10.3", "calibration": others, "plugins": ("AdditiveAttention",)}[what]
    before, option = copied.read_bytes(), "plugin" if what == "plugins" else what.replace("_", "-")
    with pytest.raises(UsageError, match=f"holds trt-int8 already, made with another --{option} or none; leave it out"):
        optimize(copied, "trt", "int8", build=True, say=lambda line: None, **{what: changed})
    assert builds == []
    if what != "plugins":
        quietly(copied, "trt", "int8", build=True, **{what: same[what]})
    assert copied.read_bytes() == before


def test_a_beam_that_the_engines_cannot_hold_is_foretold(copied, unverified, tables, monkeypatch):
    def none(*arguments):
        raise NotTestedError("there is none")

    monkeypatch.setattr("edge_attn.runtimes.optimize.optimize.open_runtime", none)
    said = quietly(copied, "trt", "fp32", profiles=tables["narrow"])
    assert said[0].startswith("engines for a beam of up to 1 cannot run the golden beam search, whose beam is 5: L3")
    with pytest.raises(NotTestedError):
        optimize(copied, "trt", "fp32", build=True, say=said.append)
    assert said.count(said[0]) == 2
    assert not [line for line in quietly(copied, "trt", "fp16") if "golden beam" in line]


@pytest.mark.parametrize("build", [3, {"colour": "red"}])
def test_a_record_that_cannot_be_read(copied, unverified, tables, build):
    quietly(copied, "trt", "fp32")

    def damaged(bundle: Bundle):
        held = bundle.manifest.targets["trt-fp32"]
        targets = {held.name: dataclasses.replace(held, settings={**held.settings, "build": build})}
        return dataclasses.replace(bundle.manifest, targets=targets), bundle.files()

    update_bundle(copied, damaged)
    with pytest.raises(ConfigError, match=r"toy.zip: targets: trt-fp32: build"):
        optimize(copied, "trt", "fp32", force=True, say=lambda line: None)
    quietly(copied, "trt", "fp32", force=True, profiles=tables["profiles"])


def test_what_the_engines_cannot_hold_is_not_tested_and_the_rest_is(copied, tables, jetson):
    said: list[str] = []
    options = {"profiles": tables["narrow"], "build": True, "cache_dir": jetson.cache}
    assert optimize(copied, "trt", "fp32", say=said.append, **options) == 3
    shown = said[-1].splitlines()
    assert next(line for line in shown if line.startswith("L3")).endswith(
        "not tested (the engine was built for up to 8 sentences of up to 20 tokens with a beam of up to 1, got 8 of "
        "7 with a beam of 5; ask for less, or build it for more (batch, src and beam in the table buckets))"
    )
    assert [line[:2] for line in shown if line.endswith(": holds")] == ["L1", "L2", "L5"]
    assert shown[-1] == "parity NOT TESTED"
