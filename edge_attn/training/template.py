"""Commented training configurations, written from the configuration dataclasses and their field docstrings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

from edge_attn.config.training import Config
from edge_attn.config.validation import read_tables
from edge_attn.errors import InputError, UsageError
from edge_attn.storage.atomic import write_bytes

EXAMPLES = {"dates": "date.toml", "translation": "tatoeba-en-fr.toml"}
"""Kinds of configurations and the file of `edge_attn/pretrained` whose values each has."""
PRETRAINED = Path(__file__).parents[1] / "pretrained"


def write_template(kind: str, out: Path | None = None) -> str:
    """Return the template, or write it to the file `out` and return the next command.

    Raises:
        UsageError: `kind` is not one of EXAMPLES.
        InputError: `out` exists or cannot be written.
    """
    text = template(kind)
    if out is None:
        return text
    if out.exists():
        raise InputError(f"{out} exists; choose another --out, or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, text.encode())
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from error
    return f"{out}: edit it, then run: edge-attn train {out} --data FOLDER --out CHECKPOINT"


def template(kind: str) -> str:
    """Return a TOML file with every key, its meaning, and the values of an example. Keys with defaults are comments.

    Raises:
        UsageError: `kind` is not one of EXAMPLES.
    """
    if kind not in EXAMPLES:
        raise UsageError(f"`kind` must be one of {', '.join(EXAMPLES)}, got {kind!r}")
    tables = read_tables(PRETRAINED / EXAMPLES[kind])
    lines = [
        "# A training configuration: edge-attn train THIS_FILE --data FOLDER --out CHECKPOINT",
        "# A key that begins with # has its default. Paths are relative to --data.",
    ]
    for table in dataclasses.fields(Config):
        declared: Any = inspect.get_annotations(Config, eval_str=True)[table.name]
        lines += ["", f"[{table.name}]"]
        meanings = field_docstrings(declared)
        for field in dataclasses.fields(declared):
            lines += [f"# {line}" for line in textwrap.wrap(meanings.get(field.name, ""), 116)]
            if field.name in tables[table.name]:
                lines.append(f"{field.name} = {_toml(tables[table.name][field.name])}")
            else:
                lines.append(f"# {field.name} = {_toml(field.default)}")
    return "\n".join(lines) + "\n"


def field_docstrings(declared: type) -> dict[str, str]:
    """Return the docstring after each field of a dataclass, on one line."""
    (body,) = (node for node in ast.parse(textwrap.dedent(inspect.getsource(declared))).body)
    assert isinstance(body, ast.ClassDef)
    meanings = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            meanings[field.target.id] = " ".join(str(after.value.value).split())
    return meanings


def _toml(value: object) -> str:
    if isinstance(value, float):
        return repr(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
