"""Every error that edge-attn raises on purpose, and the exit code it means.

    EdgeAttnError
      ParityError         1   the deployed model is not the reference
      UsageError          2   an option that makes no sense
      NotTestedError      3   something that was asked for could not run
        MissingExtraError     ... because a package is not installed
      InputError          4   bad input: a line, a file, a table
        ConfigError           ... a training configuration
        BundleError           ... a bundle
        CheckpointError       ... a checkpoint
        ExportError           ... a model that does not export
        TooLargeError         ... a request that an engine was not built for

Anything else that reaches the command line is a fault of ours: exit 70, with its traceback.
"""

from __future__ import annotations


class EdgeAttnError(Exception):
    """An error whose message is a sentence to the person who can act on it."""

    exit_code = 70


class ParityError(EdgeAttnError):
    exit_code = 1


class UsageError(EdgeAttnError, ValueError):
    exit_code = 2


class NotTestedError(EdgeAttnError):
    exit_code = 3


class MissingExtraError(NotTestedError):
    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'edge-attn[{extra}]'")


class InputError(EdgeAttnError):
    exit_code = 4


class ConfigError(InputError):
    pass


class BundleError(InputError):
    pass


class CheckpointError(InputError):
    pass


class ExportError(InputError):
    pass


class TooLargeError(InputError):
    pass
