"""Corpora: files of sentences, or of pairs of sentences, one a line or in two parallel files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from edge_attn.errors import InputError, UsageError
from edge_attn.path_kind import CONFIGURATION, GZIP, SENTENCEPIECE, check_kind
from edge_attn.progress import logger
from edge_attn.text.lines import STANDARD_STREAM, scan_lines

T = TypeVar("T")
Pair = tuple[str, str]


def read_pairs(path: Path, separator: str = "\t", columns: Sequence[int] = ()) -> list[Pair]:
    """Return the (source, target) pairs of a file. Raises the errors of `iter_pairs`."""
    return [pair for pair in iter_pairs(path, separator, columns) if pair is not None]


def read_corpus(
    folder: Path, files: str | Sequence[str], separator: str = "\t", columns: Sequence[int] = ()
) -> list[Pair]:
    """Return the pairs of one file, or of two parallel files. Raises the errors of `iter_pairs` and `read_parallel`."""
    if isinstance(files, str):
        return read_pairs(folder / files, separator, columns)
    source, target = files
    return read_parallel(folder / source, folder / target)


def check_corpus(folder: Path, files: str | Sequence[str], separator: str, columns: Sequence[int]) -> None:
    """Check that one file begins with a pair, or that each of two parallel files begins with text.

    Raises:
        InputError: a file is missing or of another kind, or the first line is no pair.
        UsageError: the separator is empty, or `columns` are not two numbers of at least 1.
    """
    if isinstance(files, str):
        next(pair for pair in iter_pairs(folder / files, separator, columns) if pair)
        return
    for name in files:
        next(_parse_lines(folder / name, lambda line, _: line), None)


def read_parallel(source: Path, target: Path) -> list[Pair]:
    """Return the pairs of two files, whose lines of the same number are a pair.

    Raises:
        InputError: a file is missing, damaged or empty, a line breaks the rules of `decode_line`, or one file has more
            lines than the other.
    """
    pairs = []
    sides = [_parse_lines(path, lambda line, _: line.strip()) for path in (source, target)]
    for number, (left, right) in enumerate(itertools.zip_longest(*sides), 1):
        if left is None or right is None:
            longer, shorter = (source, target) if right is None else (target, source)
            raise InputError(f"{longer} has more lines than {shorter}, which has {number - 1}; they must be parallel")
        if left or right:
            pairs.append((left, right))
    if not pairs:
        raise InputError(f"{source} is empty: expected one sentence a line")
    return pairs


def iter_pairs(path: Path, separator: str = "\t", columns: Sequence[int] = ()) -> Iterator[Pair | None]:
    """Yield (source, target) of each line, or None for an empty line, in bounded memory.

    Args:
        path: the file, plain or compressed by gzip; `-` is standard input.
        separator: text between two columns.
        columns: numbers of the columns of source and target, counted from 1. Empty: a line has two columns, or each
            has three, of which the first two are read.

    Raises:
        InputError: the file is missing, is a damaged .gz or has no pair, or a line breaks the rules of `decode_line` or
            lacks a column. The message contains the line number.
        UsageError: the separator is empty, or `columns` are not two numbers of at least 1.
    """
    for pair in scan_pairs(path, separator, columns, stop=True):
        assert not isinstance(pair, InputError)  # with `stop` it is raised
        yield pair


def scan_pairs(path: Path, separator: str, columns: Sequence[int], stop: bool) -> Iterator[Pair | InputError | None]:
    """Yield what `iter_pairs` yields and, unless `stop`, the error of each line that is no pair instead of raising."""
    split = _PairSplitter(path, separator, columns)
    check_text_file(path)
    empty = True
    for pair in scan_lines(path, split, stop):
        empty = empty and pair is None
        yield pair
    if empty:
        raise InputError(f"{path} is empty: expected one pair a line")


class _PairSplitter:
    """Function of a line that returns its pair, and reports a third column that is not read once."""

    def __init__(self, path: Path, separator: str, columns: Sequence[int]) -> None:
        if not separator:
            raise UsageError("`separator` must not be empty")
        if columns and (len(columns) != 2 or min(columns) < 1):
            raise UsageError(f"`columns` must be two numbers of at least 1, got {', '.join(map(str, columns))}")
        self._path, self._separator, self._columns = path, separator, tuple(columns)
        self._expected = 0  # columns of each line; 0 before the first line

    def __call__(self, line: str, where: str) -> Pair | None:
        if not line:
            return None
        cells = line.split(self._separator)
        if self._columns:
            source, target = self._columns
            if len(cells) < max(self._columns):
                raise InputError(f"{where}: expected at least {max(self._columns)} columns, got {len(cells)}")
            return cells[source - 1].strip(), cells[target - 1].strip()
        if len(cells) != (self._expected or len(cells)) or len(cells) not in (2, 3):
            raise InputError(
                f"{where}: expected source and target with one {self._separator!r} between them, "
                f"got {len(cells)} column{'s' if len(cells) != 1 else ''}" + self._hint(len(cells))
            )
        if not self._expected and len(cells) == 3:
            logger.warning("%s has three columns; the first two are read (others: --columns, data.columns)", self._path)
        self._expected = len(cells)
        return cells[0].strip(), cells[1].strip()

    def _hint(self, cells: int) -> str:
        if self._expected and self._expected != cells > 1:
            return f", and the lines before it have {self._expected}; choose two with `columns`"
        return "; choose two with `columns`" if cells > 3 else ""


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
    if path == STANDARD_STREAM:
        return
    check_kind(path, "a text file", (GZIP, CONFIGURATION, SENTENCEPIECE))
    try:
        if path.is_dir() or not path.exists():  # a named pipe is not opened: its writer would end
            path.open("rb").close()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _parse_lines(path: Path, parse: Callable[[str, str], T]) -> Iterator[T]:
    """Yield `parse(line, where)` for each line of a file."""
    check_text_file(path)
    for result in scan_lines(path, parse):
        assert not isinstance(result, InputError)  # with `stop` it is raised
        yield result
