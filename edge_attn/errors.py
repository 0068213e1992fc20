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
