"""Reading of lines and writing of files, shared by the commands."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import select
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar

from edge_attn import progress
from edge_attn.bundle.output_file import is_stream, open_output_file, output_errors
from edge_attn.errors import InputError
from edge_attn.text.lines import LONGEST_LINE, STANDARD_STREAM, decode_line, decompressed, reading

T = TypeVar("T")

WINDOW = 1024
"""Maximum number of lines in memory. Within a window, sentences of similar length share a batch."""
CHUNK = 1 << 16
"""Maximum number of bytes that one system call reads."""


def json_number(value: float) -> float | str:
    """Return `value`, or its text if it is infinite or NaN, which JSON cannot represent."""
    return value if math.isfinite(value) else str(value)


def json_line(content: Mapping[str, Any]) -> str:
    """Return one line of a JSONL file."""
    return json.dumps(content, ensure_ascii=False) + "\n"


def line_bar(path: Path | None, hidden: bool = False) -> Any:
    """Return a bar that counts the lines of a file, or of standard input.

    Args:
        path: file whose lines are the total; None, or a stream, has no total.
        hidden: hide the bar, as where the terminal is the input.
    """
    is_shown = progress.is_shown() and not hidden
    total = _count_lines(path) if path and is_shown else None
    return progress.bar(total=total, unit=" lines", leave=True, disable=not is_shown)


def _count_lines(path: Path) -> int | None:
    """Return the number of lines of a file, or None where it is a stream or cannot be read."""
    if path == STANDARD_STREAM or is_stream(path):
        return None
    count, last = 0, b"\n"
    try:
        with path.open("rb") as opened:
            file = decompressed(opened, str(path))
            while chunk := file.read(1 << 20):
                count, last = count + chunk.count(b"\n"), chunk[-1:]
    except (OSError, EOFError, zlib.error, InputError):
        return None
    return count + (last != b"\n")


def warn(message: str) -> None:
    """Log a warning, which the command line prints on standard error."""
    progress.logger.warning("%s", message)


@contextlib.contextmanager
def open_sentences(sentences: Sequence[str]) -> Iterator[BinaryIO]:
    """Open sentences of the command line as a file, so that the rules for lines apply to them too."""
    with tempfile.TemporaryFile() as file:
        file.writelines(os.fsencode(sentence) + b"\n" for sentence in sentences)
        file.seek(0)
        yield file


def read_windows(source: BinaryIO, name: str = "the input", stop: bool = True) -> Iterator[list[str | InputError]]:
    """Yield lists of at most WINDOW lines.

    A list is yielded before a read that would wait for more input, so that an interactive user gets an answer at once.

    Args:
        source: the input, plain or compressed by gzip.
        name: its name in error messages.
        stop: raise the error of a line that breaks the rules of `decode_line`, after the lines before it are yielded.
            Otherwise the error stands in the list in place of the line.

    Raises:
        InputError: a bad line, or a damaged .gz. The lines before it are yielded first.
    """
    number, rest, at_end = 0, b"", False
    lines: list[str | InputError] = []
    file: io.BufferedIOBase | None = None
    while not at_end:
        try:
            with reading(name):
                file = file or decompressed(source, name)
                chunk = file.read1(CHUNK)
        except InputError:
            yield lines
            raise
        at_end = not chunk
        *complete, rest = (rest + chunk).split(b"\n")
        if at_end and rest:
            complete, rest = [*complete, rest], b""
        if len(rest) > LONGEST_LINE:
            if stop:  # an error before its end, which may never arrive
                complete = [*complete, rest]
            rest = rest[: LONGEST_LINE + 1]
        for raw in complete:
            number += 1
            try:
                lines.append(decode_line(raw, f"line {number}"))
            except InputError as error:
                if stop:
                    yield lines
                    raise
                lines.append(error)
            if len(lines) == WINDOW:
                yield lines
                lines = []
        if lines and (at_end or not _is_readable(source)):
            yield lines
            lines = []


def _is_readable(source: BinaryIO) -> bool:
    """Return whether a read would return without waiting."""
    return bool(select.select([source.fileno()], [], [], 0)[0])


def windows(items: Iterator[T]) -> Iterator[list[T]]:
    """Yield lists of at most WINDOW items.

    Raises:
        InputError: `items` raised it. The items before it are yielded first.
    """
    window: list[T] = []
    try:
        for item in items:
            window.append(item)
            if len(window) == WINDOW:
                yield window
                window = []
    except InputError:
        yield window
        raise
    yield window


class TextWriter:
    """Text output to a file or to standard output, whose errors name the file."""

    def __init__(self, file: TextIO, path: Path | None) -> None:
        self._file, self._path = file, path

    def write(self, text: str) -> None:
        with output_errors(self._path):
            self._file.write(text)

    def flush(self) -> None:
        with output_errors(self._path):
            self._file.flush()


@contextlib.contextmanager
def open_output(path: Path | None) -> Iterator[TextWriter]:
    """Open a file for writing; None and `-` are standard output.

    A file appears when the block ends without an error. A pipe or a device receives the text at once.

    Raises:
        InputError: the file cannot be written, is a bundle or a file of one, or standard output is closed.
    """
    if path is None or path == STANDARD_STREAM:
        if sys.stdout is None:
            raise InputError("standard output is closed; give a file with --output")
        writer = TextWriter(sys.stdout, None)
        yield writer
        writer.flush()
        return
    with open_output_file(path) as file:
        yield TextWriter(file, path)
