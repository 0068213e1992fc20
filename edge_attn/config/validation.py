"""Conversion of TOML files and JSON objects to dataclasses, and checks of their values. Standard library only."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edge_attn.errors import ConfigError, InputError, UsageError, quoted
from edge_attn.path_kind import CONFIGURATION, check_kind

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Check that `value` is one of `known`.

    Raises:
        ConfigError: it is not.
    """
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {quoted(value)}")


def at_least(name: str, value: float, minimum: float) -> None:
    """Check that `value` is a number of at least `minimum`.

    Raises:
        ConfigError: it is less, or NaN.
    """
    if not value >= minimum:
        raise ConfigError(f"{name} must be at least {minimum}, got {value}")


def at_most(name: str, value: int, maximum: int) -> None:
    """Check that `value` is at most `maximum`.

    Raises:
        ConfigError: it is more.
    """
    if value > maximum:
        raise ConfigError(f"{name} must be at most {maximum}, got {quoted(value)}")


def positive(name: str, value: float) -> None:
    """Check that `value` is a positive finite number.

    Raises:
        ConfigError: it is not.
    """
    if not 0.0 < value < math.inf:
        raise ConfigError(f"{name} must be positive and finite, got {value}")


def read_tables(path: Path) -> dict[str, Any]:
    """Return the tables of the TOML file `path`.

    Raises:
        InputError: the file cannot be read.
        ConfigError: not TOML.
    """
    check_kind(path, "a TOML file", (CONFIGURATION,))
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # a number with too many digits is no TOMLDecodeError
        raise ConfigError(f"{path} is not TOML: {error}") from error


def read_toml(kind: type[T], path: Path, settings: Sequence[str] = ()) -> T:
    """Read a dataclass of type `kind` from the TOML file `path`.

    Args:
        kind: the dataclass.
        path: the file.
        settings: values that replace those of the file, as "table.key=value"; a string needs no quotes.

    Raises:
        InputError: the file cannot be read.
        ConfigError: not TOML, or an error of `from_mapping`. The message contains the file and the key.
        UsageError: a setting is not of this form.
    """
    tables = read_tables(path)
    for setting in settings:
        _replace(tables, _parse_setting(setting))
    return from_mapping(kind, tables, str(path))


def _parse_setting(setting: str) -> dict[str, Any]:
    """Return the nested table of "table.key=value"."""
    key, equals, value = setting.partition("=")
    for text in (value, json.dumps(value.strip(), ensure_ascii=False)):
        with contextlib.suppress(ValueError, RecursionError):
            if equals and "\n" not in setting:
                return tomllib.loads(f"{key}={text}")
    raise UsageError(f"`settings` takes TABLE.KEY=VALUE, as training.updates=40, got {setting!r}")


def _replace(tables: dict[str, Any], setting: dict[str, Any]) -> None:
    for key, value in setting.items():
        if isinstance(value, dict) and isinstance(tables.get(key), dict):
            _replace(tables[key], value)
        else:
            tables[key] = value


def from_mapping(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass of type `kind` from plain values, nested dataclasses from nested tables.

    A field whose metadata contains `formerly` is also read under that name.

    Args:
        kind: the dataclass.
        values: the values by field name.
        where: the source of the values in error messages, as a file name.

    Raises:
        ConfigError: an unknown, duplicate or missing key, a value of the wrong type or out of range.
    """
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]  # kind is a dataclass
    current_names = {f.metadata["formerly"]: f.name for f in fields.values() if "formerly" in f.metadata}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        name = current_names.get(key, key)
        if name not in fields:
            close = difflib.get_close_matches(key, fields, 3, 0.5)
            known = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(fields))}"
            raise ConfigError(f"{where}: unknown key {quoted(key)}; {known}")
        if name in arguments:
            former = fields[name].metadata["formerly"]
            raise ConfigError(f"{where}: {former!r} is the former name of {name!r}; remove {former!r}")
        arguments[name] = convert(hints[name], value, f"{where}: {key}")
    for name, declared in fields.items():
        has_default = declared.default is not dataclasses.MISSING or declared.default_factory is not dataclasses.MISSING
        if name not in arguments and not has_default:
            raise ConfigError(f"{where}: the key {name!r} is missing")
    try:
        return kind(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def convert(expected: Any, value: Any, where: str) -> Any:
    """Return `value` checked against the type annotation `expected`, with containers and dataclasses rebuilt.

    Args:
        expected: the annotation: a dataclass, tuple, list, dict, union with None, a plain type, or Any.
        value: the value, of JSON or TOML.
        where: the source of the value in error messages.

    Raises:
        ConfigError: it has another type.
    """
    origin = typing.get_origin(expected)
    if dataclasses.is_dataclass(expected):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, got {quoted(value)}")
        return from_mapping(typing.cast(Any, expected), value, where)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, got {quoted(value)}")
        inner = typing.get_args(expected)[0]
        return origin(convert(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, got {quoted(value)}")
        inner = typing.get_args(expected)[1]
        return {str(key): convert(inner, item, f"{where}.{key}") for key, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        members = [a for a in typing.get_args(expected) if a is not type(None)]
        is_list = isinstance(value, list | tuple)
        fitting = [a for a in members if (typing.get_origin(a) in (tuple, list)) == is_list]
        return convert((fitting or members)[0], value, where)
    if expected is Any:
        return value
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError as error:
            raise ConfigError(f"{where} must be of type float, got {quoted(value)}") from error
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ConfigError(f"{where} must be of type {expected.__name__}, got {quoted(value)}")
    if expected is int and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{where} must be less than 2**63 in magnitude, got {quoted(value)}")
    return value
