"""An error is one line of at most 300 characters, whatever values it contains."""

from __future__ import annotations

import pickle

import pytest

from edge_attn import errors
from edge_attn.errors import EdgeAttnError, one_line, quoted


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("a sentence", "a sentence"),
        ("  two\nlines\r\n", r"two\nlines"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("na\udce9", r"na\udce9"),
        ("\u202eright to left", r"\u202eright to left"),
        ("naïve ▁été", "naïve ▁été"),
        (ValueError("of a library\n"), "of a library"),
    ],
)
def test_unprintable_characters_are_escaped(message, expected):
    assert one_line(message) == expected


def test_long_word_is_shortened_before_the_sentence():
    text = one_line(f"the key {'k' * 1000} is unknown; known: a, b")
    assert text.startswith("the key kkkk")
    assert text.endswith("kkkk is unknown; known: a, b")
    assert "\u2026" in text
    assert len(text) < 150


@pytest.mark.parametrize("message", ["word " * 1000, "w" * 5000, "\x1b" * 5000, "é" * 300])
def test_long_message_has_both_of_its_ends(message):
    text = one_line(message)
    assert len(text) <= 288
    assert text.startswith(one_line(message[:10])[:8])
    assert text.isprintable()


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    ["x" * 1000, "a\nb\x1b", nested(100_000), 10**5000, {"a": nested(5000)}, "\udc80"],
    ids=["long", "control", "deep", "large", "deep table", "surrogate"],
)
def test_quoted_value_is_short_and_printable(value):
    text = quoted(value)
    assert 0 < len(text) <= 80
    assert text.isprintable()


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EdgeAttnError)]


@pytest.mark.parametrize("kind", KINDS)
def test_error_of_a_worker_process_reaches_its_parent(kind):
    error = kind("onnx", "export") if kind is errors.MissingExtraError else kind("a sentence")
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), copied.exit_code) == (kind, str(error), error.exit_code)
