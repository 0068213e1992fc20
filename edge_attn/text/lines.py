"""Lines of text from files and from standard input, plain or compressed by gzip, and the rules for them."""

from __future__ import annotations

import contextlib
import gzip
import io
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from edge_attn.errors import InputError

T = TypeVar("T")

LONGEST_LINE = 1 << 20
"""Maximum length of a line in bytes. A longer line is no sentence, and reading it would take unbounded memory."""
STANDARD_STREAM = Path("-")
"""Name of standard input and of standard output on the command line."""
GZIP = b"\x1f\x8b"
OTHER_COMPRESSIONS = {b"BZh91AY": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
"""Compression by the first bytes of a file, which are not gzip and not UTF-8 text."""


def decode_line(raw: bytes, where: str) -> str:
    """Decode one line, without its line feed, carriage returns and byte order mark.

    A byte order mark is removed from any line, because files that begin with one are joined to larger ones.

    Args:
        raw: the line with or without its line feed, or at least the first LONGEST_LINE + 1 bytes of a longer one.
        where: the line's name in error messages, as "pairs.tsv, line 3".

    Raises:
        InputError: the line is too long, not UTF-8, or contains a NUL byte.
    """
    raw = raw.removesuffix(b"\n").rstrip(b"\r")
    if len(raw) > LONGEST_LINE:
        raise InputError(f"{where}: more than {LONGEST_LINE} bytes; put one sentence or one pair on a line")
    try:
        line = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start + 1}; convert the text to UTF-8") from error
    if "\0" in line:
        raise InputError(f"{where}: contains a NUL byte; the input is not text")
    return line


@contextlib.contextmanager
def open_binary(path: Path | None) -> Iterator[BinaryIO]:
    """Open a file for reading; None and `-` are standard input.

    Raises:
        InputError: the file cannot be read, or standard input is closed.
    """
    if path is None or path == STANDARD_STREAM:
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


def decompressed(file: BinaryIO, name: str) -> io.BufferedIOBase:
    """Return the file, or the text that gzip compressed in it. Its first bytes decide, or a name that ends in .gz.

    Raises:
        InputError: another compression.
    """
    if not hasattr(file, "peek"):  # a substitute for standard input that a program put there
        file = cast(BinaryIO, io.BufferedReader(io.BytesIO(file.read())))
    buffered = cast(io.BufferedReader, file)
    head = buffered.peek(8)
    if head.startswith(GZIP) or name.endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    for magic, compression in OTHER_COMPRESSIONS.items():
        if head.startswith(magic):
            raise InputError(f"{name} is compressed by {compression}; decompress it, or compress it by gzip instead")
    return buffered


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn the errors of reading a file, which gzip compressed perhaps, into an InputError that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{name} cannot be read: {reason}") from error


def scan_lines(path: Path, parse: Callable[[str, str], T], stop: bool = True) -> Generator[T | InputError, None, None]:
    """Yield `parse(line, where)` for each line of a file, in bounded memory.

    Args:
        path: the file, plain or compressed by gzip; `-` is standard input.
        parse: function of a line and of its name in error messages.
        stop: raise the error of a bad line. Otherwise it is yielded in place of the line.

    Raises:
        InputError: the file cannot be read, or is a damaged .gz.
    """
    name = "standard input" if path == STANDARD_STREAM else str(path)
    with open_binary(path) as opened, reading(name):
        file = decompressed(opened, name)
        for number, raw in enumerate(_raw_lines(file), 1):
            where = f"{name}, line {number}"
            try:
                yield parse(decode_line(raw, where), where)
            except InputError as error:
                if not stop:
                    yield error
                    continue
                # a damaged .gz can decompress to wrong lines; the checksum at its end reveals the damage
                while isinstance(file, gzip.GzipFile) and file.read(1 << 16):
                    pass
                raise


def _raw_lines(file: io.BufferedIOBase) -> Iterator[bytes]:
    """Yield each line, of one that is too long no more than its beginning."""
    while raw := file.readline(LONGEST_LINE + 2):
        yield raw  # at once, because the line may have no end
        while len(raw) == LONGEST_LINE + 2 and not raw.endswith(b"\n"):
            raw = file.readline(LONGEST_LINE + 2)
