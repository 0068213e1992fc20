"""Text files, one sentence or one pair of sentences a line, and the rules for their lines."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from edge_attn.errors import InputError, UsageError
from edge_attn.path_kind import CONFIGURATION, GZIP, SENTENCEPIECE, check_kind

T = TypeVar("T")

LONGEST_LINE = 1 << 20
"""Maximum length of a line in bytes. A longer line is no sentence, and reading it would take unbounded memory."""


def decode_line(raw: bytes, where: str, is_first: bool) -> str:
    """Decode one line, without its line feed and carriage returns.

    Args:
        raw: the line with or without its line feed, or at least the first LONGEST_LINE + 1 bytes of a longer one.
        where: the line's name in error messages, as "pairs.tsv, line 3".
        is_first: whether this is the first line of its file, where a byte order mark is removed.

    Raises:
        InputError: the line is too long, not UTF-8, or contains a NUL byte.
    """
    raw = raw.removesuffix(b"\n").rstrip(b"\r")
    if len(raw) > LONGEST_LINE:
        raise InputError(f"{where}: more than {LONGEST_LINE} bytes; put one sentence or one pair on a line")
    try:
        line = raw.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start + 1}; convert the text to UTF-8") from error
    if "\0" in line:
        raise InputError(f"{where}: contains a NUL byte; the input is not text")
    return line


def read_pairs(path: Path, separator: str = "\t") -> list[tuple[str, str]]:
    """Return the (source, target) pairs of a file. Raises the errors of `iter_pairs`."""
    return [pair for pair in iter_pairs(path, separator) if pair is not None]


def iter_pairs(path: Path, separator: str = "\t") -> Iterator[tuple[str, str] | None]:
    """Yield (source, target) of each line, or None for an empty line, in bounded memory. A .gz file is decompressed.

    Raises:
        InputError: the file is missing, is a damaged .gz or has no pair, or a line breaks the rules of `decode_line` or
            has not two columns. The message contains the line number.
        UsageError: the separator is empty.
    """
    if not separator:
        raise UsageError("`separator` must not be empty")

    def split(line: str, where: str) -> tuple[str, str] | None:
        if not line:
            return None
        columns = line.split(separator)
        if len(columns) != 2:
            raise InputError(
                f"{where}: expected source and target with one {separator!r} between them, "
                f"got {len(columns)} column{'s' if len(columns) != 1 else ''}"
            )
        return columns[0].strip(), columns[1].strip()

    empty = True
    for pair in _parse_lines(path, split):
        empty = empty and pair is None
        yield pair
    if empty:
        raise InputError(f"{path} is empty: expected one pair a line")


def read_sentences(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file that are not empty, without surrounding white space.

    Raises:
        InputError: the file is missing or has no sentence, or a line breaks the rules of `decode_line`.
    """
    sentences = tuple(filter(None, _parse_lines(path, lambda line, _: line.strip())))
    if not sentences:
        raise InputError(f"{path} is empty: expected one sentence a line")
    return sentences


def check_text_file(path: Path) -> None:
    """Check that a file exists, and is no bundle or another binary file, before the model is loaded.

    Raises:
        InputError: it cannot be read, or is of a known kind other than text.
    """
    check_kind(path, "a text file", (GZIP,) if path.suffix == ".gz" else (CONFIGURATION, SENTENCEPIECE))
    try:
        if path.is_dir() or not path.exists():  # a named pipe is not opened: its writer would end
            path.open("rb").close()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _parse_lines(path: Path, parse: Callable[[str, str], T]) -> Iterator[T]:
    """Yield `parse(line, where)` for each line of a file, decompressed if its name ends in .gz."""
    check_text_file(path)
    is_compressed = path.suffix == ".gz"
    try:
        with gzip.open(path, "rb") if is_compressed else path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 2), b""), 1):
                where = f"{path}, line {number}"
                try:
                    result = parse(decode_line(raw, where, number == 1), where)
                except InputError:
                    # a damaged .gz can decompress to wrong lines; the checksum at its end reveals the damage
                    while is_compressed and file.read(1 << 16):
                        pass
                    raise
                yield result
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} cannot be read: {reason}") from error
