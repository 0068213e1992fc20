"""Each recipe of CONTRIBUTING has five steps, which name files and tables that exist."""

from __future__ import annotations

import re

import pytest
from paths import PROJECT

from edge_attn import registry

TEXT = (PROJECT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
CI = PROJECT / ".ci"
RECIPES = dict(re.findall(r"^### Add an? (\w+)\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL))


def test_every_kind_of_extension_has_a_recipe():
    assert list(RECIPES) == ["op", "family", "task", "runtime", "importer", "target", "report"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_names_files_and_tables_that_exist(recipe: str):
    steps = re.findall(r"^(\d)\. (.*)$", RECIPES[recipe], re.MULTILINE)
    assert [int(number) for number, _ in steps] == [1, 2, 3, 4, 5]
    for _, step in steps:
        for code in re.findall(r"`([^`]+)`", step):
            for word in code.split():
                if "/" in word or word.endswith((".py", ".toml", ".md", ".txt")):
                    assert (PROJECT / word).exists(), f"{recipe}: {word}"
            if re.fullmatch(r"[A-Z_]+", code):
                assert hasattr(registry, code), f"{recipe}: {code}"


@pytest.mark.parametrize("recipe", ["op", "family", "task", "runtime", "target"])
def test_recipe_names_the_table_of_the_registry(recipe: str):
    table = {"family": "FAMILIES"}.get(recipe, f"{recipe.upper()}S")
    assert f"`{table}`" in RECIPES[recipe]


def test_full_check_calls_the_other_checks():
    run = (CI / "run").read_text(encoding="utf-8")
    for script in (".ci/check", ".ci/test", ".ci/device"):
        assert f"\n{script}" in run or f" {script}" in run
        assert f"`{script}" in TEXT


def test_pre_commit_has_the_versions_of_the_constraints():
    hooks = (PROJECT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    constraints = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = re.findall(r"additional_dependencies: \[(.*)\]", hooks)
    assert pins
    assert [pin for pin in pins if pin not in constraints] == []
