"""Pairs of sentences from a file, one pair a line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edge_attn.errors import InputError, UsageError

LONGEST_LINE = 1 << 20
"""Bytes; a longer line is refused, because it is no pair of sentences."""


def read_pairs(path: Path, separator: str = "\t") -> list[tuple[str, str]]:
    """The (source, target) pairs of a file; raises what `iter_pairs` does."""
    return [pair for pair in iter_pairs(path, separator) if pair is not None]


def iter_pairs(path: Path, separator: str = "\t") -> Iterator[tuple[str, str] | None]:
    """The (source, target) of each line as it is read, None for an empty line; .gz is read too, in bounded memory.

    Raises:
        InputError: no such file, a damaged .gz, not UTF-8, a NUL, no pair at all, or a line without two columns; the
            sentence names the line by its number.
        UsageError: an empty separator.
    """
    if not separator:
        raise UsageError("separator must not be empty")
    empty = True
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(_lines(file), 1):
                try:
                    pair = _pair(raw, number, path, separator)
                except InputError:
                    while path.suffix == ".gz" and file.read(1 << 16):
                        pass  # to the checksum: a damaged .gz gives wrong lines before it says that it is damaged
                    raise
                empty = empty and pair is None
                yield pair
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} cannot be read: {why}") from error
    if empty:
        raise InputError(f"{path} is empty: expected one pair a line")


def _lines(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    """Each line with its line feed; of one that is too long, as much as shows that it is."""
    while raw := file.readline(LONGEST_LINE + 2):
        yield raw


def _pair(raw: bytes, number: int, path: Path, separator: str) -> tuple[str, str] | None:
    raw = raw.removesuffix(b"\n").rstrip(b"\r")
    if len(raw) > LONGEST_LINE:
        raise InputError(f"{path}, line {number}: more than {LONGEST_LINE} bytes; put one pair on a line")
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {number}: not UTF-8 at byte {error.start + 1}") from error
    if "\0" in line:
        raise InputError(f"{path}, line {number}: holds a NUL byte; the file is not text")
    if not line:
        return None
    columns = line.split(separator)
    if len(columns) != 2:
        raise InputError(
            f"{path}, line {number}: expected source and target with one {separator!r} between them, "
            f"got {len(columns)} column{'s' if len(columns) != 1 else ''}"
        )
    return columns[0].strip(), columns[1].strip()


def read_sentences(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not empty.

    Raises:
        InputError: it cannot be read, is not UTF-8, or holds no sentence.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}") from error
    sentences = tuple(line.strip() for line in lines if line.strip())
    if not sentences:
        raise InputError(f"{path} holds no sentence")
    return sentences
