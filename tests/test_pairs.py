"""Pairs from files, or a sentence that names the line."""

from __future__ import annotations

import gzip

import pytest

from edge_attn.errors import InputError
from edge_attn.pairs import read_pairs


@pytest.fixture
def write(tmp_path):
    def write(data: bytes, name: str = "pairs.tsv"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def test_pairs_are_read_plain_and_compressed(write):
    data = "a b\tx\n\nélan \t y\r\n\r\nlast\tline".encode()
    expected = [("a b", "x"), ("élan", "y"), ("last", "line")]
    assert read_pairs(write(data)) == expected
    assert read_pairs(write(gzip.compress(data), "pairs.tsv.gz")) == expected
    assert read_pairs(write(b"a|b\tc"), "|") == [("a", "b\tc")]


def test_only_a_line_feed_ends_a_line(write):
    assert read_pairs(write("a\u2028b\u0085c\td\n".encode())) == [("a\u2028b\u0085c", "d")]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"a\tb\nonly one\n", r"pairs\.tsv, line 2: expected source and target .*, found 1 column$"),
        (b"a\tb\tc\n", r"line 1: .*, found 3 columns$"),
        (b"a\tb\n\n\xff\tb\n", r"line 3: not UTF-8 at byte 1"),
        (b"a\tb\na\t\xe9t\xe9\n", r"line 2: not UTF-8 at byte 3"),
        (b"", r"pairs\.tsv is empty"),
        (b"\n\r\n\n", r"pairs\.tsv is empty"),
    ],
)
def test_a_bad_file_is_refused_by_its_line(write, data, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        read_pairs(write(data))
    assert caught.value.exit_code == 4


def test_a_damaged_gz_is_refused(write):
    whole = gzip.compress("\n".join(f"source {i}\ttarget {i}" for i in range(200)).encode(), mtime=0)
    refused = 0
    damaged = [whole[: len(whole) // 2], b"a\tb\n", whole[:3], whole[:-1]]
    damaged += [whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :] for i in range(10, len(whole), 7)]
    for data in damaged:
        with pytest.raises(InputError, match=r"pairs\.tsv\.gz cannot be read"):
            read_pairs(write(data, "pairs.tsv.gz"))
        refused += 1
    assert refused == len(damaged)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none.tsv cannot be read"):
        read_pairs(tmp_path / "none.tsv")
