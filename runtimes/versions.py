"""Version numbers."""

from __future__ import annotations

import re


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with: (10, 3, 0) for `10.3.0rc1`, empty for a text without any."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()
