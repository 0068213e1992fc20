"""What a command does at a line that cannot be read."""

from __future__ import annotations

from edge_attn.errors import InputError, one_line
from edge_attn.runtimes.commands.line_io import warn


class BadLines:
    """Policy for the bad lines of an input, and their number.

    `stop` ends the command at the first bad line. `skip` answers it with an empty line and a warning. The default is
    `stop` for a file, which is not what it should be. A program that writes to standard input waits for an answer to
    each line: the default there is to skip, and to fail when the input ends.
    """

    def __init__(self, on_error: str | None, is_stream: bool) -> None:
        """Choose the policy.

        Args:
            on_error: `stop`, `skip`, or None for the default.
            is_stream: whether the input is standard input.
        """
        self.stop = on_error == "stop" or (on_error is None and not is_stream)
        self._fails = on_error is None
        self._count = 0
        self._first: InputError | None = None

    def report(self, error: InputError) -> None:
        """Count a bad line that was skipped, and print a warning."""
        self._count += 1
        self._first = self._first or error
        warn(f"{one_line(error)}; skipped")

    def raise_errors(self) -> None:
        """End the command at the end of its input.

        Raises:
            InputError: lines were skipped by default, not on request.
        """
        if self._first is not None and self._fails:
            lines = "1 line was" if self._count == 1 else f"{self._count} lines were"
            raise InputError(f"{lines} skipped; the first: {self._first}") from self._first
