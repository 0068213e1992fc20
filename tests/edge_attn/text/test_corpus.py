"""Pairs and sentences are read from files, and a bad line is refused by its number."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tracemalloc
from pathlib import Path

import pytest

from edge_attn.errors import InputError, UsageError
from edge_attn.text.corpus import iter_pairs, read_corpus, read_pairs, read_sentences, scan_pairs
from edge_attn.text.lines import LONGEST_LINE, decode_line


@pytest.fixture
def write(tmp_path):
    def write(data: bytes, name: str = "pairs.tsv"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def test_plain_and_compressed_pairs_are_read(write):
    data = "a b\tx\n\nélan \t y\r\n\r\nlast\tline".encode()
    expected = [("a b", "x"), ("élan", "y"), ("last", "line")]
    assert read_pairs(write(data)) == expected
    assert read_pairs(write(gzip.compress(data), "pairs.tsv.gz")) == expected
    assert read_pairs(write(b"a|b\tc"), "|") == [("a", "b\tc")]


def test_only_a_line_feed_ends_a_line(write):
    assert read_pairs(write("a\u2028b\u0085c\td\n".encode())) == [("a\u2028b\u0085c", "d")]


BAD_LINES = [
    (b"a\tb\n\n\xff\tb\n", r"line 3: not UTF-8 at byte 1; convert the text to UTF-8$"),
    (b"a\tb\na\t\xe9t\xe9\n", r"line 2: not UTF-8 at byte 3"),
    (b"a\tb\n\na\tb\0\n", r"line 3: contains a NUL byte; the input is not text$"),
    (
        b"a\tb\n" + b"x" * (LONGEST_LINE + 1),
        rf"line 2: more than {LONGEST_LINE} bytes; put one sentence or one pair on a line$",
    ),
    (b"a\tb\n" + b"x" * (3 * LONGEST_LINE) + b"\tb\n", r"line 2: more than"),
    (b"", r"pairs\.tsv is empty"),
    (b"\n\r\n\n", r"pairs\.tsv is empty"),
]
BAD_PAIRS = [
    (b"a\tb\nonly one\n", r"pairs\.tsv, line 2: expected source and target .*, got 1 column$"),
    (b"a\tb\tc\td\n", r"line 1: .*, got 4 columns; choose two with `columns`$"),
    (b"a\tb\na\tb\tc\n", r"line 2: .*, got 3 columns, and the lines before it have 2; choose two with `columns`$"),
    (b"a\tb\tc\na\tb\n", r"line 2: .*, got 2 columns, and the lines before it have 3; choose two with `columns`$"),
]


@pytest.mark.parametrize(("data", "message"), [*BAD_LINES, *BAD_PAIRS])
def test_bad_line_of_pairs_is_refused_by_its_number(write, data, message):
    with pytest.raises(InputError, match=message) as caught:
        read_pairs(write(data))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(("data", "message"), BAD_LINES)
def test_bad_line_of_sentences_is_refused_by_its_number(write, data, message):
    with pytest.raises(InputError, match=message):
        read_sentences(write(data))


def test_damaged_gz_is_refused(write):
    whole = gzip.compress("\n".join(f"source {i}\ttarget {i}" for i in range(200)).encode(), mtime=0)
    refused = 0
    damaged = [whole[: len(whole) // 2], b"a\tb\n", whole[:3], whole[:-1]]
    damaged += [whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :] for i in range(10, len(whole), 7)]
    for data in damaged:
        with pytest.raises(InputError, match=r"pairs\.tsv\.gz cannot be read"):
            read_pairs(write(data, "pairs.tsv.gz"))
        refused += 1
    assert refused == len(damaged)


def test_unreadable_file_is_refused_with_the_system_message(tmp_path):
    for read in (read_pairs, read_sentences):
        with pytest.raises(InputError) as caught:
            read(tmp_path / "none.tsv")
        assert str(caught.value) == f"{tmp_path / 'none.tsv'} cannot be read: No such file or directory"
    for folder in (tmp_path, tmp_path / "folder.gz"):
        folder.mkdir(exist_ok=True)
        with pytest.raises(InputError, match=r"cannot be read: Is a directory$"):
            read_pairs(folder)


def test_bad_line_of_a_damaged_gz_is_reported_as_damage(write):
    """One changed byte of the text, so that it decompresses and only the checksum at its end differs."""
    whole = bytearray(gzip.compress(b"".join(b"source\ttarget\n" for _ in range(2000)), 0))
    whole[whole.index(b"\t", 15000)] = ord("x")
    with pytest.raises(InputError, match=r"pairs\.tsv\.gz cannot be read: CRC check failed"):
        read_pairs(write(bytes(whole), "pairs.tsv.gz"))


def test_pairs_are_yielded_as_they_are_read(write):
    lines = iter_pairs(write(b"a\tb\n\n\tb\na\t\nbad\n"))
    assert [next(lines) for _ in range(4)] == [("a", "b"), None, ("", "b"), ("a", "")]
    with pytest.raises(InputError, match="line 5"):
        next(lines)


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz"])
def test_memory_is_independent_of_the_file_size(write, name):
    data = b"source\ttarget\n" * 400_000
    path = write(gzip.compress(data, 1) if name.endswith("gz") else data, name)
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_pairs(path)) == 400_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_longest_line_and_byte_order_mark_are_read(write):
    long = "x" * (LONGEST_LINE - 2)
    assert read_pairs(write(f"{long}\ty\r\n\r\na\tb".encode())) == [(long, "y"), ("a", "b")]
    assert read_pairs(write("\ufeffa\tb\n\ufeffc\td".encode())) == [("a", "b"), ("c", "d")]
    assert read_sentences(write("\ufeffa\n\ufeffc".encode())) == ("a", "c")


def test_line_ending_is_removed():
    assert [decode_line(raw, "line 1") for raw in (b"a \n", b"a \r\n", b"a ", b"\n")] == ["a ", "a ", "a ", ""]


def test_sentences_are_lines_with_text(write):
    assert read_sentences(write("  un chat \r\n\n\nl'été\n".encode())) == ("un chat", "l'été")
    assert read_sentences(write(gzip.compress(b"a b\nc"), "lines.gz")) == ("a b", "c")


def test_third_column_is_reported_once(write, caplog):
    """Tatoeba's pairs have their sources in it."""
    path = write(b"a\tb\tCC-BY 2.0\n\nc\td\tCC-BY 2.0\n")
    assert read_pairs(path) == [("a", "b"), ("c", "d")]
    assert caplog.messages == [f"{path} has three columns; the first two are read (others: --columns, data.columns)"]


@pytest.mark.parametrize(
    ("columns", "expected"), [((1, 2), ("a", "b")), ((2, 1), ("b", "a")), ((3, 1), ("c", "a")), ((2, 2), ("b", "b"))]
)
def test_columns_are_chosen(write, caplog, columns, expected):
    assert read_pairs(write(b"a \tb\tc\n\na\tb\t c\td\n"), columns=columns) == [expected] * 2
    assert caplog.messages == []


def test_missing_column_is_refused_by_its_line(write):
    with pytest.raises(InputError, match=r"line 2: expected at least 3 columns, got 2$"):
        read_pairs(write(b"a\tb\tc\na\tb\n"), columns=(1, 3))


@pytest.mark.parametrize("columns", [(1,), (0, 1), (1, 2, 3), (-1, 2)])
def test_columns_that_are_not_two_numbers_are_refused(write, columns):
    with pytest.raises(UsageError, match="`columns` must be two numbers of at least 1"):
        read_pairs(write(b"a\tb\n"), columns=columns)


def test_parallel_files_are_pairs(write, tmp_path):
    write(b"a\n\nc\td\n", "train.de")
    write(gzip.compress("\ufeffx\n\n y\r\n".encode()), "train.en.gz")
    assert read_corpus(tmp_path, ["train.de", "train.en.gz"]) == [("a", "x"), ("c\td", "y")]
    assert read_corpus(tmp_path, "train.de", "|", (1, 1)) == [("a", "a"), ("c\td", "c\td")]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (b"a\nb\n", b"x\n", r"a\.de has more lines than \S*b\.en, which has 1; they must be parallel"),
        (b"a\n", b"x\ny\n", r"b\.en has more lines than \S*a\.de, which has 1"),
        (b"a\n\xff\n", b"x\ny\n", r"a\.de, line 2: not UTF-8"),
        (b"\n", b"\n", r"a\.de is empty"),
    ],
)
def test_files_that_are_not_parallel_are_refused(write, tmp_path, source, target, message):
    write(source, "a.de")
    write(target, "b.en")
    with pytest.raises(InputError, match=message):
        read_corpus(tmp_path, ["a.de", "b.en"])


def test_bad_lines_are_yielded_in_their_place(write):
    data = b"a\tb\n\xff\tb\nonly one\n\n" + b"x" * (3 * LONGEST_LINE) + b"\nc\td\0\nc\td\n"
    first, *errors, empty, long, nul, last = scan_pairs(write(data), "\t", (), stop=False)
    assert (first, empty, last) == (("a", "b"), None, ("c", "d"))
    for number, error in zip((2, 3, 5, 6), (*errors, long, nul), strict=True):
        assert isinstance(error, InputError)
        assert f"line {number}: " in str(error)


def test_compression_is_read_from_the_content(write):
    assert read_pairs(write(gzip.compress(b"a\tb\n"), "pairs.tsv")) == [("a", "b")]
    two_members = gzip.compress(b"a\tb\n") + gzip.compress(b"c\td\n")
    assert read_pairs(write(two_members, "pairs")) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(("module", "name"), [(bz2, "bzip2"), (lzma, "xz")])
def test_other_compression_is_named(write, module, name):
    with pytest.raises(InputError, match=f"is compressed by {name}; decompress it, or compress it by gzip instead"):
        read_sentences(write(module.compress(b"a\n"), "lines"))


def test_dash_is_standard_input(monkeypatch):
    for data in (b"a\tb\n", gzip.compress(b"a\tb\n")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
        assert read_pairs(Path("-")) == [("a", "b")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"a\n\xff\n"))))
    with pytest.raises(InputError, match=r"^standard input, line 2: not UTF-8"):
        read_sentences(Path("-"))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        read_sentences(Path("-"))


def test_empty_separator_is_refused(write):
    with pytest.raises(UsageError, match="`separator` must not be empty"):
        read_pairs(write(b"a\tb\n"), "")
