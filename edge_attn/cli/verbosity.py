"""Options -v and -q of every command: what the logger `edge_attn` prints on standard error."""

from __future__ import annotations

import click

HELP = {"verbose": "Print more: a line for each stage, and all details.", "quiet": "Print no warnings or progress."}
SELECTED = "edge_attn.verbosity"
"""Key of the selected option in the context of a command line."""


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
    import logging

    from edge_attn.progress import logger

    return logger.isEnabledFor(logging.INFO)


def _select(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Set the level of the logger: WARNING, if no option of this command line selects another one."""
    from edge_attn.progress import print_messages  # here, because logging takes a tenth of the time of --help

    selected = ctx.find_root().meta
    if value and parameter.name:
        selected[SELECTED] = parameter.name
    print_messages(selected.get(SELECTED, ""))
