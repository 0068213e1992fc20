"""Options -v and -q, before and after the name of each command."""

from __future__ import annotations

import logging

import click
import pytest

from edge_attn.cli import cli
from edge_attn.cli.verbosity import is_verbose
from edge_attn.progress import logger


@pytest.fixture
def levels(monkeypatch):
    """Return the level of the logger in each call of `doctor`."""
    seen = []

    def doctor():
        seen.append(logger.level)
        logger.info("a stage")
        logger.warning("a fault")
        raise SystemExit(0)

    monkeypatch.setattr("edge_attn.runtimes.doctor.check.doctor", doctor)
    return seen


@pytest.mark.parametrize(
    ("arguments", "level", "messages"),
    [
        (["doctor"], logging.WARNING, "warning: a fault\n"),
        (["-v", "doctor"], logging.INFO, "a stage\nwarning: a fault\n"),
        (["doctor", "--verbose"], logging.INFO, "a stage\nwarning: a fault\n"),
        (["--quiet", "doctor"], logging.ERROR, ""),
        (["doctor", "-q"], logging.ERROR, ""),
        (["-v", "doctor", "-q"], logging.ERROR, ""),
    ],
)
def test_option_sets_the_level_of_one_command_line(edge_attn_cli, levels, arguments, level, messages):
    assert edge_attn_cli(*arguments).stderr == messages
    edge_attn_cli("doctor")
    assert levels == [level, logging.WARNING]
    assert not is_verbose()


def commands(command: click.Command) -> list[click.Command]:
    inner = getattr(command, "commands", {}).values()
    return [command, *(leaf for each in inner for leaf in commands(each))]


@pytest.mark.parametrize("command", commands(cli), ids=lambda command: command.name)
def test_every_command_has_both_options(command):
    declared = [option for parameter in command.params for option in parameter.opts]
    assert {"-v", "--verbose", "-q", "--quiet"} <= set(declared)
    assert len(declared) == len(set(declared))
