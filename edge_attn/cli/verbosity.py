"""Options -v and -q of every command: what the logger `edge_attn` prints on standard error."""

from __future__ import annotations

import logging
import sys

import click

from edge_attn.progress import logger

LEVELS = {"quiet": logging.ERROR, "verbose": logging.INFO}
HELP = {"verbose": "Print more: a line for each stage, and all details.", "quiet": "Print no warnings or progress."}
SELECTED = "edge_attn.verbosity"
"""Key of the selected level in the context of a command line."""


class StderrHandler(logging.Handler):
    """Handler that prints messages on the current standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message, a warning with its level."""
        if sys.stderr is None:
            return
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = prefix + record.getMessage()
        if tqdm := sys.modules.get("tqdm"):
            tqdm.tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr)


def add_options(command: click.Command) -> None:
    """Add -v and -q to a command. They work before and after the name of a command."""
    for name, text in HELP.items():
        declaration = (f"-{name[0]}", f"--{name}")
        option = click.Option(declaration, is_flag=True, expose_value=False, callback=_select, help=text)
        command.params.append(option)
    for inner in getattr(command, "commands", {}).values():
        add_options(inner)


def is_verbose() -> bool:
    """Return whether this command line has --verbose."""
    return logger.isEnabledFor(logging.INFO)


def _select(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Set the level of the logger: WARNING, if no option of this command line selects another one."""
    selected = ctx.find_root().meta
    if value and parameter.name:
        selected[SELECTED] = LEVELS[parameter.name]
    logger.setLevel(selected.get(SELECTED, logging.WARNING))
    if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
        logger.addHandler(StderrHandler())
