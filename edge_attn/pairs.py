"""Pairs of sentences from a file, one pair a line."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from edge_attn.errors import InputError


def read_pairs(path: Path, separator: str = "\t") -> list[tuple[str, str]]:
    """The (source, target) pairs of a file with one pair a line; .gz is read too.

    Raises:
        InputError: no such file, a damaged .gz, not UTF-8, no line at all, or a line without two columns; the sentence
            names the line by its number.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    pairs = []
    for number, raw in enumerate(data.split(b"\n"), 1):
        raw = raw.rstrip(b"\r")
        if not raw:
            continue
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: not UTF-8 at byte {error.start + 1}") from error
        columns = line.split(separator)
        if len(columns) != 2:
            raise InputError(
                f"{path}, line {number}: expected source and target with one {separator!r} between them, "
                f"found {len(columns)} column{'s' if len(columns) != 1 else ''}"
            )
        pairs.append((columns[0].strip(), columns[1].strip()))
    if not pairs:
        raise InputError(f"{path} is empty: expected one pair a line")
    return pairs
