"""Kinds of expressions for the reader of our source (trt_attributes.py), and the kinds that annotations declare."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field

Classes = dict[str, dict[str, list[str]]]
"""Recorded surface: class, attribute, type of its value, versions without it."""
Guard = tuple[str, bool]
"""A property of Capability, and its value where the code runs."""


@dataclass(frozen=True)
class Kind:
    """Kind of an expression: python (not TensorRT's), unknown, module, plugin, class, object, method, tuple or many."""

    what: str
    name: str = ""
    inner: tuple[Kind, ...] = ()


PYTHON, UNKNOWN = Kind("python"), Kind("unknown")
MODULE, PLUGIN = Kind("module", "module"), Kind("plugin", "plugin")
TENSORRT = ("module", "plugin", "class", "object")
ALIASES = {"TensorrtModule": MODULE, "PluginModule": PLUGIN}


def many(kind: Kind) -> Kind:
    return PYTHON if kind == PYTHON else Kind("many", inner=(kind,))


def pair(*kinds: Kind) -> Kind:
    return Kind("tuple", inner=kinds)


@dataclass
class Declarations:
    """Annotated fields and functions of all files whose values are objects of TensorRT."""

    classes: Classes
    aliases: dict[str, Kind]
    fields: dict[str, Kind] = field(default_factory=dict)
    functions: dict[str, Kind] = field(default_factory=dict)


def collect_declarations(trees: Iterable[ast.Module], classes: Classes, api_source: str) -> Declarations:
    """Collect the declarations of files. `api_source` is the text of api.py, which contains the aliases."""
    names = [
        node.target.id for node in ast.parse(api_source).body if isinstance(node, ast.AnnAssign) and _is_alias(node)
    ]
    declarations = Declarations(classes, {name: ALIASES.get(name, Kind("object", name)) for name in names})
    for tree in trees:
        for node in ast.walk(tree):
            for name, annotation in _fields(node):
                kind = annotated(annotation, declarations)
                if kind not in (PYTHON, UNKNOWN):
                    declarations.fields[name] = kind
            if isinstance(node, ast.FunctionDef):
                returned = annotated(node.returns, declarations) if node.returns else UNKNOWN
                if declarations.functions.get(node.name, PYTHON) in (PYTHON, UNKNOWN):  # TensorRT's takes precedence
                    declarations.functions[node.name] = returned
    return declarations


def _is_alias(node: ast.AnnAssign) -> bool:
    return (
        isinstance(node.annotation, ast.Name)
        and node.annotation.id == "TypeAlias"
        and isinstance(node.target, ast.Name)
    )


def _fields(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """Return the annotated fields of a class, `x: X`, or of an instance, `self.x: X`."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
        return [(node.target.attr, node.annotation)]
    body = node.body if isinstance(node, ast.ClassDef) else []
    declared = [item for item in body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    return [(item.target.id, item.annotation) for item in declared if isinstance(item.target, ast.Name)]


def annotated(node: ast.expr, declarations: Declarations) -> Kind:
    """Return the kind that an annotation declares."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.Name):
        return UNKNOWN if node.id == "Any" else declarations.aliases.get(node.id, PYTHON)
    if isinstance(node, ast.BinOp):
        kinds = [annotated(node.left, declarations), annotated(node.right, declarations)]
        return next((kind for kind in kinds if kind != PYTHON), PYTHON)
    if isinstance(node, ast.Subscript):
        outer = getattr(node.value, "id", getattr(node.value, "attr", ""))
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        kinds = [annotated(part, declarations) for part in parts if not isinstance(part, ast.List)]
        if outer in ("Callable", "type", "TypeVar", "Literal"):
            return PYTHON
        if outer == "tuple" and Ellipsis not in [getattr(part, "value", None) for part in parts]:
            return pair(*kinds) if set(kinds) != {PYTHON} else PYTHON
        return many(next((kind for kind in kinds if kind not in (PYTHON,)), PYTHON))
    return PYTHON


def capabilities(test: ast.expr) -> tuple[Guard, ...]:
    """Return the guards of a condition: `tensorrt.capability.NAME`, its negation, and conjunctions of both."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return tuple(guard for value in test.values for guard in capabilities(value))
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = capabilities(test.operand)
        return tuple((name, not value) for name, value in inner) if len(inner) == 1 else ()
    owner = getattr(test, "value", None)
    if isinstance(test, ast.Attribute) and getattr(owner, "attr", getattr(owner, "id", "")) == "capability":
        return ((test.attr, True),)
    return ()
