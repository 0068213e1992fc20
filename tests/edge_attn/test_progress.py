"""Progress: bars on a terminal only, a line of the logger for each stage, and neither in quiet commands."""

from __future__ import annotations

import io
import logging

import pytest

from edge_attn import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


both = pytest.mark.parametrize("stream", [io.StringIO, Terminal], ids=["file", "terminal"])


def run() -> list[list[int]]:
    with progress.stages("verify", 2):
        progress.stage("L1")
        batches = list(progress.track([[0, 1], [2]], 3, len))
        progress.stage("L2")
    return batches


@both
def test_bars_are_shown_on_a_terminal_only(stream, monkeypatch):
    stderr = stream()
    monkeypatch.setattr("sys.stderr", stderr)
    assert run() == [[0, 1], [2]]
    assert ("verify 1/2: L1" in stderr.getvalue()) is stderr.isatty()
    assert ("verify 2/2: L2" in stderr.getvalue()) is stderr.isatty()


@both
def test_quiet_commands_have_no_bars(stream, monkeypatch):
    stderr = stream()
    monkeypatch.setattr("sys.stderr", stderr)
    before = progress.logger.level
    progress.logger.setLevel(logging.ERROR)
    try:
        run()
    finally:
        progress.logger.setLevel(before)
    assert stderr.getvalue() == ""


def test_closed_standard_error_shows_nothing(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert run() == [[0, 1], [2]]


def test_each_stage_is_a_line_of_the_logger(caplog):
    with caplog.at_level(logging.INFO, "edge_attn"):
        run()
    assert [message.partition(" (")[0] for message in caplog.messages] == ["verify 1/2: L1", "verify 2/2: L2"]


def test_items_outside_of_a_stage_have_no_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress.track([[0]], 1, len)) == [[0]]
    assert terminal.getvalue() == ""


@progress.stages("optimize")
def optimize() -> None:
    progress.stage("read")
    progress.expect_stages(2)
    progress.stage("round 1")


def test_stages_may_be_nested(caplog):
    with caplog.at_level(logging.INFO, "edge_attn"):
        progress.stage("outside")
        with progress.stages("export", 2):
            progress.stage("record")
            run()
            progress.stage("write")
        optimize()
    lines = [message.partition(" (")[0] for message in caplog.messages]
    assert lines == [
        "export 1/2: record",
        "verify 1/2: L1",
        "verify 2/2: L2",
        "export 2/2: write",
        "optimize: read",
        "optimize 2/2: round 1",
    ]
