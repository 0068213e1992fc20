"""Version numbers as TensorRT, Debian packages and wheels write them."""

from __future__ import annotations

import pytest

from edge_attn.runtimes.versions import parse_version


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("10.3.0", (10, 3, 0)),
        ("10.3.0.30-1+cuda12.5", (10, 3, 0, 30)),
        ("10.13.0rc1", (10, 13, 0)),
        ("11", (11,)),
        ("", ()),
        ("unknown", ()),
    ],
)
def test_parse_version_returns_the_leading_numbers(text, numbers):
    assert parse_version(text) == numbers
