"""Standard streams of the command line: UTF-8, and defined results where one is closed, full or has no reader."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from edge_attn.errors import InputError


class OutputFile(io.FileIO):
    """Standard output. After its first error the rest goes to the null device, so that the exit raises no second one.

    A pipe without a reader stays a BrokenPipeError: the reader, such as `head`, needs no more lines.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            raise InputError(f"standard output cannot be written: {error.strerror}") from error


class MessageFile(io.FileIO):
    """Standard error. A message that cannot be written is dropped: it never ends the work that it is about."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def open_streams() -> OutputFile | None:
    """Replace the streams of a process by UTF-8 ones, and return standard output's file unless it is closed.

    A closed descriptor is opened on the null device: otherwise the next file that is opened would receive its output.
    `sys.stdin` and `sys.stdout` stay None then, and commands that need them refuse to run.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
    if _is_descriptor(sys.stderr, 2):
        sys.stderr = _text(MessageFile(2, "w", closefd=False), line_buffering=True)
    if sys.stdout is None or not _is_descriptor(sys.stdout, 1):
        return None
    file = OutputFile(1, "w", closefd=False)
    sys.stdout = _text(file, line_buffering=file.isatty())
    return file


def _is_descriptor(stream: Any, descriptor: int) -> bool:
    """Return whether `stream` writes to `descriptor`, or is None. A stream that a caller has replaced does not."""
    try:
        return stream is None or stream.fileno() == descriptor
    except (OSError, ValueError, AttributeError):
        return False


def _text(file: io.FileIO, line_buffering: bool) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(file)
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=line_buffering)
