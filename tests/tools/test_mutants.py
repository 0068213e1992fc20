"""Tests that verify finds each planted fault of a bundle and accepts each harmless rewrite."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed: a device needs none")

import mutants
from paths import DATA

from edge_attn.bundle.bundle import Bundle
from edge_attn.export.pipeline import export

KINDS = Bundle.open(DATA / "kinds" / "hard-gru.zip")


@pytest.fixture(scope="session")
def exported(toy_checkpoint, tmp_path_factory) -> Bundle:
    path = tmp_path_factory.mktemp("exported") / "toy.zip"
    export(toy_checkpoint, path)
    return Bundle.open(path)


@pytest.mark.slow
def test_every_fault_is_refused_and_every_rewrite_accepted(exported):
    wrong = [(name, code, cause) for name, is_right, code, cause in mutants.verdicts(exported, []) if not is_right]
    assert wrong == []


@pytest.mark.parametrize("fault", ["mask ignored", "fp32 called int8", "beam alignment lost", "beam results dropped"])
def test_fault_of_a_small_kind_is_refused(fault, tmp_path):
    code, cause = mutants.exit_code(KINDS, mutants.faults(KINDS)[fault], tmp_path)
    assert code in (1, 4), cause


def test_fault_is_reported_with_its_entry(tmp_path):
    change = mutants.wrong_at("step", "next_", "tokens", 0, 33, 33)
    code, cause = mutants.exit_code(KINDS, change, tmp_path)
    assert code == 1
    assert "the step departs at target entry" in cause
    assert "batch 33" in cause


def test_unchanged_bundle_is_accepted(tmp_path):
    assert mutants.exit_code(KINDS, lambda manifest, files: None, tmp_path) == (0, "")
