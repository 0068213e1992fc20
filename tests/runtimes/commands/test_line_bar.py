"""Bar of the commands that work through lines: its total is the number of lines of the input file."""

from __future__ import annotations

import gzip
import io
import os

import pytest

from edge_attn.progress import logger
from edge_attn.runtimes.commands.line_io import line_bar, warn


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("content", "total"), [(b"", 0), (b"a\nb\n", 2), (b"a\nb", 2), (b"\n\n\n", 3)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_total_is_the_number_of_lines(tmp_path, monkeypatch, content, total, suffix):
    monkeypatch.setattr("sys.stderr", Terminal())
    path = tmp_path / f"lines{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with line_bar(path) as shown:
        assert (shown.total, shown.disable) == (total, False)


@pytest.mark.parametrize("content", [None, b"no gzip"])
def test_file_that_cannot_be_read_has_no_total(tmp_path, monkeypatch, content):
    monkeypatch.setattr("sys.stderr", Terminal())
    if content:
        (tmp_path / "a.gz").write_bytes(content)
    with line_bar(tmp_path / "a.gz") as shown:
        assert shown.total is None


def test_stream_is_not_read_for_its_total(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", None):
        with line_bar(path) as shown:
            assert shown.total is None


def test_lines_are_not_counted_without_a_bar(tmp_path, monkeypatch):
    (tmp_path / "lines").write_text("a\n")
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with line_bar(tmp_path / "lines") as shown:
        assert (shown.total, shown.disable) == (None, True)
    monkeypatch.setattr("sys.stderr", Terminal())
    with line_bar(tmp_path / "lines", hidden=True) as shown:
        assert (shown.total, shown.disable) == (None, True)


def test_warning_is_logged(caplog):
    warn("line 3 has 50 % more tokens")
    assert caplog.messages == ["line 3 has 50 % more tokens"]
    assert caplog.records[0].name == logger.name
