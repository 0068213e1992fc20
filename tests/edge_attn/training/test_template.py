"""`edge-attn init` writes a configuration that trains, with the meaning of every key."""

from __future__ import annotations

import dataclasses
import re

import pytest
from click.testing import CliRunner

from edge_attn.cli import cli
from edge_attn.config.training import Config, read_config
from edge_attn.errors import ConfigError, UsageError
from edge_attn.training.template import EXAMPLES, PRETRAINED, template


@pytest.mark.parametrize("kind", EXAMPLES)
def test_template_is_the_example(tmp_path, kind):
    path = tmp_path / "run.toml"
    path.write_text(template(kind))
    assert read_config(path) == read_config(PRETRAINED / EXAMPLES[kind])


@pytest.mark.parametrize("kind", EXAMPLES)
def test_template_with_every_default_is_the_same(tmp_path, kind):
    path = tmp_path / "run.toml"
    path.write_text(re.sub(r"^# (\w+ = )", r"\1", template(kind), flags=re.MULTILINE))
    assert read_config(path) == read_config(PRETRAINED / EXAMPLES[kind])


def test_template_explains_every_key():
    lines = template("dates").splitlines()
    for table in dataclasses.fields(Config):
        for field in dataclasses.fields(type(getattr(read_config(PRETRAINED / "date.toml"), table.name))):
            index = next(i for i, line in enumerate(lines) if re.match(rf"(# )?{field.name} = ", line))
            assert lines[index - 1].startswith("# "), field.name
            assert " = " not in lines[index - 1] or lines[index - 1].endswith(".")


def test_command_writes_a_file_once(tmp_path):
    path = tmp_path / "new" / "run.toml"
    assert CliRunner().invoke(cli, ["init", "dates", "--out", str(path)]).exit_code == 0
    assert path.read_text() == template("dates") == CliRunner().invoke(cli, ["init", "dates"]).output
    result = CliRunner().invoke(cli, ["init", "dates", "--out", str(path)])
    assert result.exit_code == 4
    assert "exists; choose another --out" in result.output


def test_choices_of_the_command_are_the_examples():
    (kind, *_) = cli.commands["init"].params
    assert list(kind.type.choices) == list(EXAMPLES)
    with pytest.raises(UsageError, match="`kind` must be one of dates, translation"):
        template("other")


# ---- settings


@pytest.mark.parametrize(
    ("setting", "table", "key", "value"),
    [
        ("training.updates=40", "training", "updates", 40),
        ("training.learning_rate = 1e-3", "training", "learning_rate", 1e-3),
        ('model.cell="lstm"', "model", "cell", "lstm"),
        ("model.cell=lstm", "model", "cell", "lstm"),
        ("model.input_feeding=true", "model", "input_feeding", True),
        ("data.train=a b.tsv.gz", "data", "train", "a b.tsv.gz"),
    ],
)
def test_setting_replaces_a_value(setting, table, key, value):
    path = PRETRAINED / "date.toml"
    config, before = read_config(path, [setting]), read_config(path)
    assert getattr(getattr(config, table), key) == value
    replaced = dataclasses.replace(getattr(config, table), **{key: getattr(getattr(before, table), key)})
    assert dataclasses.replace(config, **{table: replaced}) == before


@pytest.mark.parametrize("setting", ["training.updates", "=3", "a b=3", "", "training.updates=1\nmodel.cell='lstm'"])
def test_malformed_setting_is_refused(setting):
    with pytest.raises(UsageError, match=r"takes TABLE.KEY=VALUE, as training.updates=40, got"):
        read_config(PRETRAINED / "date.toml", [setting])


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.hidden=64", "did you mean encoder_hidden or decoder_hidden"),
        ("training.update=4", "did you mean updates"),
        ("modle.cell=lstm", "did you mean model"),  # codespell:ignore modle
        ("training.zzz=4", "known: average"),
        ("training.updates=thirty", "must be of type int, got 'thirty'"),
    ],
)
def test_unknown_key_names_the_closest(setting, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        read_config(PRETRAINED / "date.toml", [setting])
