"""The command line: a click group.

Each command imports its function, a row of the table `VERBS`, when it runs, so that `--help` imports click only.

Exit codes: 0 success, 1 parity does not hold, 2 usage, 3 not tested, 4 bad input or bundle, 70 a bug in edge-attn,
129 SIGHUP, 130 Ctrl-C, 141 the reader closed the pipe, 143 SIGTERM. Output is UTF-8 in every locale.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from edge_attn import __version__
from edge_attn.cli import verbosity
from edge_attn.cli.device import cache, demo, doctor, inspect, optimize, verify
from edge_attn.cli.model import export, init, train
from edge_attn.cli.signals import exit_code, raise_on_signals
from edge_attn.cli.streams import open_streams
from edge_attn.cli.text import align, evaluate, score, translate
from edge_attn.errors import EdgeAttnError, InputError, one_line

VERSIONED = (
    *("numpy", "click", "onnxruntime", "onnxruntime-gpu", "torch", "onnx", "onnxscript"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu13-bindings", "sentencepiece", "sacrebleu"),
)
"""Packages in the output of `edge-attn --version`, read from their metadata: none of them is imported."""


class ErrorHandlingGroup(click.Group):
    """Group that turns an error into one line on standard error and its exit code.

    An interruption has the exit code of a shell, because click's exit code 1 is a verdict here.
    """

    def main(  # type: ignore[override]  # click declares an overload for each value of standalone_mode
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **settings: Any
    ) -> Any:
        """Run a command line, and exit with its code if `standalone_mode` is set.

        Raises:
            SystemExit: the command ended, in standalone mode.
        """
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **settings)
        try:
            code = super().main(args, standalone_mode=False, **settings)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.UsageError as error:
            message = re.sub(r"\((Did you mean .*\?)\)\.?$", r"\1", " ".join(error.format_message().split()))
            end = "" if message.endswith((".", "?")) else "."
            command = error.ctx.command_path if error.ctx else "edge-attn"
            _print_line(f"{message}{end} See: {command} --help")
            code = error.exit_code
        except click.Abort as error:  # an interruption outside of a command
            code = exit_code(error.__cause__ if isinstance(error.__cause__, KeyboardInterrupt) else KeyboardInterrupt())
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeAttnError as error:
            if error.exit_code == 70:
                raise
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            _print_line(_with_option_names(str(error), command))
            ctx.exit(error.exit_code)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            _print_line(f"the memory of this machine is too small: {error}".rstrip(": "))
            ctx.exit(InputError.exit_code)
        except BrokenPipeError:  # a reader such as `head` needs no more lines
            ctx.exit(128 + signal.SIGPIPE)
        except KeyboardInterrupt as error:
            ctx.exit(exit_code(error))


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocation failed. The errors of torch are RuntimeErrors, on a GPU of this name."""
    is_from_torch = "DefaultCPUAllocator: " in str(error) or type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or is_from_torch


def _print_line(message: object) -> None:
    click.echo(f"edge-attn: {one_line(message)}", err=True)


def _with_option_names(message: str, command: click.Command | None) -> str:
    """Return `message` with the option of `command` in place of each parameter name in backticks."""
    commands = [command, *getattr(command, "commands", {}).values()]
    options = {
        parameter.name: max(parameter.opts, key=len)
        for inner in commands
        for parameter in (inner.params if inner else ())
        if isinstance(parameter, click.Option)
    }
    return re.sub(r"`(\w+)`", lambda match: options.get(match[1], match[0]), message)


def _print_versions(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print the versions of edge-attn, of Python and of each installed library that runs or exports a model."""
    if not value or ctx.resilient_parsing:
        return
    import platform
    from importlib.metadata import PackageNotFoundError, version

    click.echo(f"edge-attn, version {__version__}")
    click.echo(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for name in VERSIONED:
        try:
            click.echo(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    ctx.exit()


@click.group(
    cls=ErrorHandlingGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "EDGE_ATTN"},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Show the versions of edge-attn and of the libraries that it uses.",
)
def cli() -> None:
    """Deploy attention seq2seq models from PyTorch to the edge, and verify that their results stay the same.

    A variable EDGE_ATTN_COMMAND_OPTION sets the default of an option, as EDGE_ATTN_TRANSLATE_BEAM=8.
    """


for command in (init, train, export, translate, score, align, evaluate, verify, inspect, optimize, doctor, cache, demo):
    cli.add_command(command)
verbosity.add_options(cli)


def main() -> None:
    """Run the command `edge-attn`."""
    output = open_streams()
    raise_on_signals()
    try:
        code = _run()
        if output is not None:
            sys.stdout.flush()
    except InputError as error:  # from standard output
        _print_line(error)
        code = error.exit_code
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:
        code = exit_code(error)
    except Exception:
        import traceback

        traceback.print_exc()
        click.echo("edge-attn: this is a bug in edge-attn, not an error in your input; please report it", err=True)
        code = 70
    if output is not None and isinstance(output.error, BrokenPipeError):  # click turns it into 1, which is a verdict
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _run() -> int:
    try:
        cli()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 2
    return 0
