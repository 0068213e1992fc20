"""The command line: a click group.

Each command imports its function, a row of the table `VERBS`, when it runs, so that `--help` imports click only.

Exit codes: 0 success, 1 parity does not hold, 2 usage, 3 not tested, 4 bad input or bundle, 70 a bug in edge-attn,
130 interrupted, 141 the reader closed the pipe. Output is UTF-8 in every locale.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

import click

from edge_attn import __version__
from edge_attn.cli.device import cache, demo, doctor, inspect, optimize, verify
from edge_attn.cli.model import export, train
from edge_attn.cli.text import align, evaluate, score, translate
from edge_attn.errors import EdgeAttnError


class ErrorHandlingGroup(click.Group):
    """Group that turns an EdgeAttnError into one line on standard error and its exit code.

    An interruption has the exit code of a shell, because click's exit code 1 is a verdict here.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeAttnError as error:
            if error.exit_code == 70:
                raise
            click.echo(f"edge-attn: {error}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:  # a reader such as `head` needs no more lines
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(128 + signal.SIGPIPE)
        except KeyboardInterrupt:
            ctx.exit(128 + signal.SIGINT)


@click.group(cls=ErrorHandlingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edge-attn")
def cli() -> None:
    """Deploy attention seq2seq models from PyTorch to the edge, and verify that their results stay the same."""


for command in (train, export, translate, score, align, evaluate, verify, inspect, optimize, doctor, cache, demo):
    cli.add_command(command)


def main() -> None:
    """Run the command `edge-attn`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        cli()
    except Exception:
        import traceback

        traceback.print_exc()
        click.echo("edge-attn: this is a bug in edge-attn, not an error in your input; please report it", err=True)
        sys.exit(70)
