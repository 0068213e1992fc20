"""JSON of a file becomes values that can be printed, compared and written again, or one error."""

from __future__ import annotations

import json

import pytest

from edge_attn.config.json_values import DEEPEST, parse_json
from edge_attn.errors import ConfigError, one_line


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "content", [{}, [], None, 1, -(2**63), 2**63 - 1, 1.5, "é\U0001f600", {"a": [{"b": None}]}, {"": ""}]
)
def test_values_are_those_of_the_text(content):
    data = json.dumps(content).encode()
    assert parse_json(data, "file") == content
    assert parse_json(b"\xef\xbb\xbf" + data, "file") == content


def test_nan_and_infinity_become_strings():
    assert parse_json(b'{"a": [NaN, -Infinity]}', "file") == {"a": ["NaN", "-Infinity"]}


def test_deepest_value_is_read():
    parse_json(nested(DEEPEST), "file")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "file is not JSON"),
        (b"{", "file is not JSON"),
        (b"\xff\xfe", "file is not JSON"),
        (b"1e999", "file is not JSON: the number '1e999' is out of range"),
        (b"9" * 5000, "file is not JSON: "),
        (b'{"a": 9223372036854775808}', "file: a: the number 9223372036854775808 is out of range"),
        (rb'{"a": {"b": "\udc80"}}', r"file: a: b: '\\udc80' has half of a surrogate pair"),
        (rb'{"\ud800": 1}', r"file: '\\ud800' has half of a surrogate pair"),
        (nested(DEEPEST + 2), "file is nested more than 32 deep"),
        (nested(900), "file is nested more than 32 deep"),
        (nested(200_000), "file is nested more than 32 deep"),
        (b'{"a":' * 50_000, "file is nested more than 32 deep"),
    ],
)
def test_other_text_is_an_error(data, error):
    with pytest.raises(ConfigError) as caught:
        parse_json(data, "file")
    assert one_line(caught.value).startswith(error.replace("\\\\", "\\"))
