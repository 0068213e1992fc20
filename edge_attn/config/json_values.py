"""Parsing of JSON files that may be damaged or hostile: what is returned can be printed, compared and written again."""

from __future__ import annotations

import json
import math
from typing import Any

from edge_attn.errors import ConfigError, quoted

DEEPEST = 32
"""Largest number of tables and lists around a value. Ours have about six."""
LARGEST = 1 << 63


def parse_json(data: bytes, where: str) -> Any:
    """Return the values of a JSON text. NaN and Infinity, which JSON does not have, become strings.

    Args:
        data: the text in UTF-8.
        where: the source of the text in error messages, as a file name.

    Raises:
        ConfigError: not JSON, nested too deeply, a number out of range, or a text with half of a surrogate pair.
    """
    try:
        content = json.loads(data.decode("utf-8-sig"), parse_constant=str, parse_float=_parse_float)
    except RecursionError as error:
        raise ConfigError(f"{where} is nested more than {DEEPEST} deep") from error
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    _check(content, where)
    return content


def _parse_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {quoted(text)} is out of range")
    return value


def _check(content: Any, where: str) -> None:
    """Check depth, integers and texts, without recursion."""
    remaining = [(content, where, 0)]
    while remaining:
        value, place, depth = remaining.pop()
        if depth > DEEPEST:
            raise ConfigError(f"{where} is nested more than {DEEPEST} deep")
        if isinstance(value, dict):
            for key, item in value.items():
                _check_text(key, place)
                remaining.append((item, f"{place}: {key}", depth + 1))
        elif isinstance(value, list):
            remaining += [(item, place, depth + 1) for item in value]
        elif isinstance(value, str):
            _check_text(value, place)
        elif isinstance(value, int) and not -LARGEST <= value < LARGEST:
            raise ConfigError(f"{place}: the number {quoted(value)} is out of range")


def _check_text(text: str, where: str) -> None:
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ConfigError(f"{where}: {quoted(text)} has half of a surrogate pair, which is no character")
