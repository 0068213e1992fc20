"""The generated documents are current: python tests/tools/reference_docs.py writes them."""

from __future__ import annotations

import pytest
import reference_docs as generator
from paths import PROJECT

DOCS = PROJECT / "docs"
WRITE = "run python tests/tools/reference_docs.py"


def test_command_reference_is_current():
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == generator.commands(), WRITE


def test_configuration_reference_is_current():
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == generator.configuration(), WRITE


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_quoted_code_is_current(page: str):
    text = (DOCS / page).read_text(encoding="utf-8")
    assert text == generator.with_quotes(text), WRITE


def test_changed_quote_is_replaced():
    page = "<!-- quote edge_attn/ops/dot.py: oracle -->\n```python\ndef oracle(): ...\n```\n"
    assert "masked_softmax(scale" in generator.with_quotes(page)


def test_every_option_is_in_the_command_reference():
    commands = generator.commands()
    for option in (
        "-b, --beam INTEGER",
        "--override LEVEL.NAME=VALUE",
        "--target [ort-cuda/trt]",
        "--length-penalty-kind",
    ):
        assert f"`{option}" in commands


def test_every_key_has_its_default_and_meaning():
    configuration = generator.configuration()
    assert '| `cell` | string | `"gru"` |' in configuration
    assert "| `train` | string or list of string | required |" in configuration
    assert "| `beam` | int | `4` |" in configuration
    assert "|  |\n" not in configuration + generator.commands()
