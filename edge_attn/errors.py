"""Errors that edge-attn raises on purpose, and their exit codes.

    EdgeAttnError
      ParityError         1   the deployed model differs from the reference
      UsageError          2   an invalid option
      NotTestedError      3   a requested check or runtime could not run
        MissingExtraError       an optional package is not installed
      InputError          4   bad input: a line, a file, a configuration
        ConfigError             bad configuration
        BundleError             bad bundle
        CheckpointError         bad checkpoint
        ExportError             model that cannot be exported
        TooLargeError           request larger than the engine's profile

Any other exception is a bug of edge-attn: exit code 70, with a traceback.
"""

from __future__ import annotations

import re
from typing import Any

LONGEST_MESSAGE = 288
"""Characters of an error's line on standard error, which begins with `edge-attn: `."""
LONGEST_VALUE = 80
"""Characters of a value in a message that would be too long otherwise."""


class EdgeAttnError(Exception):
    """Base class of all errors. The message is one sentence for the person who can act on it.

    A parameter's name is in backticks; the command line prints its option instead: `n_best` as --n-best.
    """

    exit_code = 70


class ParityError(EdgeAttnError):
    """The deployed model differs from the reference."""

    exit_code = 1


class UsageError(EdgeAttnError, ValueError):
    """An option or argument is invalid."""

    exit_code = 2


class NotTestedError(EdgeAttnError):
    """A requested check or runtime could not run."""

    exit_code = 3


class MissingExtraError(NotTestedError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'edge-attn[{extra}]'")
        self._arguments = package, extra

    def __reduce__(self) -> tuple[Any, ...]:  # a worker process sends it to its parent
        return type(self), self._arguments


class InputError(EdgeAttnError):
    """An input is bad: a line, a file, a configuration."""

    exit_code = 4


class ConfigError(InputError):
    """A configuration is bad."""


class BundleError(InputError):
    """A bundle is missing, damaged or not supported."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or not supported."""


class ExportError(InputError):
    """A model cannot be exported."""


class TooLargeError(InputError):
    """A request is larger than the profile that an engine was built for."""


def one_line(message: object, limit: int = LONGEST_MESSAGE) -> str:
    """Return a message as one line of at most `limit` characters.

    Line breaks, control characters, terminal codes and lone surrogates are escaped. Of a message that is too long,
    long words are shortened in the middle first, such as values that came from a file, then the message itself.
    """
    text = escape(str(message).strip())
    if len(text) > limit:
        text = re.sub(rf"\S{{{LONGEST_VALUE},}}", lambda word: _shorten(word[0], LONGEST_VALUE), text)
    return _shorten(text, limit)


def quoted(value: object) -> str:
    """Return a value as it stands in a message: its repr on one line, shortened in the middle."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        text = f"a {type(value).__name__}"
    return _shorten(escape(text), LONGEST_VALUE)


def escape(text: str) -> str:
    """Return `text` on one line, with the escape sequence of each character that cannot be printed."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}\u2026{text[head + 1 - limit :]}"
