"""Lines of text in, and files out, for the verbs that read and write text."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from edge_attn.errors import InputError
from edge_attn.storage.atomic import replacement
from edge_attn.text.corpus import decode_line


def json_number(value: float) -> float | str:
    """JSON has no number for `-inf` and `nan`."""
    return value if math.isfinite(value) else str(value)


def _decode(raw: bytes, number: int) -> str | InputError:
    """Return the decoded line, or the error, which is raised after the lines before it are answered."""
    try:
        return decode_line(raw, f"line {number}", number == 1)
    except InputError as error:
        return error


@contextlib.contextmanager
def _open_input(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        if sys.stdin is None:
            raise InputError("standard input is closed; give a file with --input")
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        yield file


def standard_output() -> TextIO:
    if sys.stdout is None:
        raise InputError("standard output is closed; give a file with --output")
    return sys.stdout


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[TextIO]:
    """A file that appears under its name when it is whole; a pipe or a device is written as it goes."""
    with contextlib.ExitStack() as stack:
        with output_errors(path):
            # a link is followed, so that it stays one
            target = path if _direct(path) else stack.enter_context(replacement(path.resolve()))
            file = stack.enter_context(target.open("w", encoding="utf-8", newline="\n"))
        try:
            yield file
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            raise
        with output_errors(path):
            stack.close()


def _direct(path: Path) -> bool:
    """A pipe or a device."""
    return path.exists() and not path.is_file()


@contextlib.contextmanager
def output_errors(path: Path | None) -> Iterator[None]:
    """Says which file cannot be written. A pipe that nobody reads is no error of the file."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"{path or 'standard output'} cannot be written: {error.strerror}") from error
