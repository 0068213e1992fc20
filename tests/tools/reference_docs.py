"""Write the generated parts of docs/.

    python tests/tools/reference_docs.py

- docs/commands.md from the command line;
- docs/configuration.md from the configuration dataclasses and their field docstrings;
- each block under `<!-- quote FILE -->` or `<!-- quote FILE: NAME, ... -->` from that file: all of it, or the named
  definitions.

tests/docs/test_generated.py compares the committed files with the output.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import sys
import typing
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import click

from edge_attn.cli import cli, verbosity
from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.config.training import DataConfig, TextConfig, TrainingConfig
from edge_attn.decoding.options import SearchConfig
from edge_attn.runtimes.trt.build_config import BuildConfig
from edge_attn.runtimes.trt.profiles import Buckets
from edge_attn.training.template import field_docstrings

PROJECT = Path(__file__).resolve().parents[2]
NOTICE = "<!-- Written by tests/tools/reference_docs.py; do not edit. -->"
QUOTE = re.compile(
    r"^(?P<marker><!-- quote (?P<file>\S+\.py)(?:: (?P<names>[\w, ]+))? -->\n```python\n)(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SECTIONS = (
    ("Training", "The TOML file of `edge-attn train` has the tables `data`, `text`, `model` and `training`.", ()),
    ("[data]", "", (DataConfig,)),
    ("[text]", "", (TextConfig,)),
    ("[model]", "", (Seq2SeqConfig,)),
    ("[training]", "", (TrainingConfig,)),
    (
        "Search",
        "`SearchConfig`, the options of `Translator.translate`; most are also options of `edge-attn translate`.",
        (SearchConfig,),
    ),
    ("Runtime", "`RuntimeOptions`, the same for every command that executes a bundle.", (RuntimeOptions,)),
    (
        "Engine builds",
        "`BuildConfig`, the TOML file of `edge-attn optimize --profiles`, with `buckets` as a table.",
        (BuildConfig, Buckets),
    ),
)


def commands() -> str:
    """Return docs/commands.md."""
    parts = [
        NOTICE,
        "# Commands",
        "Every command returns one of the [exit codes](concepts.md#exit-codes). `edge-attn COMMAND --help` prints the "
        "same text. Every command takes these options, before or after its name:",
        _option_table(cli, verbosity.HELP),
    ]
    for names, command in _leaves(cli, ()):
        context = click.Context(command, info_name=" ".join(("edge-attn", *names)), **cli.context_settings)
        names_of_own = {parameter.name for parameter in command.params} - verbosity.HELP.keys()
        parts += [f"## {context.info_name}", f"```text\n{context.get_usage().removeprefix('Usage: ')}\n```"]
        parts.append(inspect.cleandoc(command.help or ""))
        parts.append(_option_table(command, names_of_own, context))
    return "\n\n".join(filter(None, parts)) + "\n"


def _option_table(command: click.Command, names: Collection[str | None], context: click.Context | None = None) -> str:
    """Return the table of the options with these names; empty if there is none."""
    context = context or click.Context(command)
    records = [parameter.get_help_record(context) for parameter in command.params if parameter.name in names]
    # an argument without help has only its name
    rows = [(f"`{record[0].replace('|', '/')}`", _cell(record[1])) for record in records if record and record[1]]
    return _table(("Option", "Meaning"), rows) if rows else ""


def configuration() -> str:
    """Return docs/configuration.md."""
    parts = [NOTICE, "# Configuration"]
    for title, introduction, classes in SECTIONS:
        parts += [f"{'###' if title.startswith('[') else '##'} {title}", *([introduction] if introduction else [])]
        for kind in classes:
            if len(classes) > 1:
                parts.append(f"Keys of `{kind.__name__}`:")
            parts.append(_table(("Key", "Type", "Default", "Meaning"), list(_fields(kind))))
    return "\n\n".join(parts) + "\n"


def with_quotes(page: str) -> str:
    """Return the Markdown `page` with the current code in each quote."""
    return QUOTE.sub(lambda match: f"{match['marker']}{_quoted(match['file'], match['names'])}```", page)


def _leaves(group: click.Group, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from _leaves(command, (*names, name))
        else:
            yield (*names, name), command


def _fields(kind: type[Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning of each field."""
    hints, meanings = typing.get_type_hints(kind), field_docstrings(kind)
    for field in dataclasses.fields(kind):
        hint, meaning = hints[field.name], meanings.get(field.name, "")
        if dataclasses.is_dataclass(hint) and not meaning:
            meaning = f"Table with the keys of `{hint.__name__}`."
        yield f"`{field.name}`", _type(hint), _default(field), _cell(meaning)


def _type(hint: Any) -> str:
    if dataclasses.is_dataclass(hint):
        return "table"
    if typing.get_origin(hint) is tuple:
        return f"list of {_type(typing.get_args(hint)[0])}"
    if type(None) in typing.get_args(hint):
        return f"{_type(typing.get_args(hint)[0])}, optional"
    if typing.get_args(hint):
        return " or ".join(_type(member) for member in typing.get_args(hint))
    return {"str": "string", "Path": "path"}.get(hint.__name__, hint.__name__)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        if dataclasses.is_dataclass(value):
            return ""
    else:
        return "required"
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return '`"\\t"`' if value == "\t" else f'`"{value}"`'
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _cell(text: str) -> str:
    """Return `text` on one line, without the characters that Markdown would read as its own."""
    parts = " ".join(text.split()).replace("|", "/").split("`")
    plain = [re.sub(r"([*_<])", r"\\\1", part) for part in parts[::2]]
    return "`".join(part for pair in itertools.zip_longest(plain, parts[1::2]) for part in pair if part is not None)


def _quoted(file: str, names: str | None) -> str:
    source = (PROJECT / file).read_text(encoding="utf-8")
    if names is None:
        return source
    lines, starts = source.splitlines(keepends=True), {}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else ()
        for name in (getattr(node, "name", ""), *(target.id for target in targets if isinstance(target, ast.Name))):
            starts[name] = "".join(lines[node.lineno - 1 : node.end_lineno])
    return "\n\n".join(starts[name.strip()] for name in names.split(","))


def main() -> int:
    docs = PROJECT / "docs"
    pages = {path: with_quotes(path.read_text(encoding="utf-8")) for path in docs.glob("*.md")}
    pages |= {docs / "commands.md": commands(), docs / "configuration.md": configuration()}
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
