"""What the reader of our source (trt_attributes.py) knows of an expression, and what it knows before it reads: what
annotations declare, and what the functions of all files give."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field

Classes = dict[str, dict[str, list[str]]]
"""Of the recorded surface: class, attribute, what it gives and which versions lack it."""


@dataclass(frozen=True)
class Kind:
    """What an expression is: ours (Python's, no matter what), unknown, module, plugin, class, object, or many."""

    what: str
    name: str = ""
    inner: tuple[Kind, ...] = ()


OURS, UNKNOWN = Kind("ours"), Kind("unknown")
MODULE, PLUGIN = Kind("module", "module"), Kind("plugin", "plugin")
TENSORRT = ("module", "plugin", "class", "object")
ALIASES = {"TensorrtModule": MODULE, "PluginModule": PLUGIN}


def many(kind: Kind) -> Kind:
    return OURS if kind == OURS else Kind("many", inner=(kind,))


def pair(*kinds: Kind) -> Kind:
    return Kind("tuple", inner=kinds)


@dataclass
class House:
    """What is known of all files before one of them is read: annotated fields and functions that give TensorRT's."""

    classes: Classes
    aliases: dict[str, Kind]
    fields: dict[str, Kind] = field(default_factory=dict)
    functions: dict[str, Kind] = field(default_factory=dict)


def survey(trees: Iterable[ast.Module], classes: Classes, compat: str) -> House:
    """What the files declare; `compat` is the text of trt_compat.py, which has TensorRT's names."""
    names = [node.target.id for node in ast.parse(compat).body if isinstance(node, ast.AnnAssign) and _is_alias(node)]
    house = House(classes, {name: ALIASES.get(name, Kind("object", name)) for name in names})
    for tree in trees:
        for node in ast.walk(tree):
            for name, annotation in _fields(node):
                kind = annotated(annotation, house)
                if kind not in (OURS, UNKNOWN):
                    house.fields[name] = kind
            if isinstance(node, ast.FunctionDef):
                given = annotated(node.returns, house) if node.returns else UNKNOWN
                if house.functions.get(node.name, OURS) in (OURS, UNKNOWN):  # of two, the one with TensorRT's counts
                    house.functions[node.name] = given
    return house


def _is_alias(node: ast.AnnAssign) -> bool:
    return (
        isinstance(node.annotation, ast.Name)
        and node.annotation.id == "TypeAlias"
        and isinstance(node.target, ast.Name)
    )


def _fields(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """Annotated `x: X` of a class, or `self.x: X`."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
        return [(node.target.attr, node.annotation)]
    body = node.body if isinstance(node, ast.ClassDef) else []
    declared = [item for item in body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    return [(item.target.id, item.annotation) for item in declared if isinstance(item.target, ast.Name)]


def annotated(node: ast.expr, house: House) -> Kind:
    """The kind that an annotation declares."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.Name):
        return UNKNOWN if node.id == "Any" else house.aliases.get(node.id, OURS)
    if isinstance(node, ast.BinOp):
        kinds = [annotated(node.left, house), annotated(node.right, house)]
        return next((kind for kind in kinds if kind != OURS), OURS)
    if isinstance(node, ast.Subscript):
        outer = getattr(node.value, "id", getattr(node.value, "attr", ""))
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        kinds = [annotated(part, house) for part in parts if not isinstance(part, ast.List)]
        if outer in ("Callable", "type", "TypeVar", "Literal"):
            return OURS
        if outer == "tuple" and Ellipsis not in [getattr(part, "value", None) for part in parts]:
            return pair(*kinds) if set(kinds) != {OURS} else OURS
        return many(next((kind for kind in kinds if kind not in (OURS,)), OURS))
    return OURS
