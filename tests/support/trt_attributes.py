"""Attributes of TensorRT that our source code uses, and the capabilities under which it uses them.

A small type inference over the syntax tree. TensorRT enters as `tensorrt.trt`, or by an annotation with one of the
names of runtimes/trt/api.py. The recorded surface (tests/data/tensorrt-surface.json) contains the types of its
attributes. An attribute of an object of unknown type is a fault, so that no use of TensorRT is missed.

An access inside `if tensorrt.capability.NAME:`, or after `if not tensorrt.capability.NAME: raise ...`, counts only
for the versions that have the capability. Members of `tensorrt.plugin` count for versions with aot_plugins.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_kinds import (
    MODULE,
    PLUGIN,
    PYTHON,
    TENSORRT,
    UNKNOWN,
    Classes,
    Declarations,
    Guard,
    Kind,
    annotated,
    capabilities,
    collect_declarations,
    many,
    pair,
)

CUDA_FILES = ("cudart.py", "cuda_libraries.py", "plugins/ptx.py")
"""Files in runtimes/trt that call CUDA and not TensorRT."""
STORING_METHODS = ("append", "add", "extend", "insert", "update", "setdefault")
"""Methods with which a container stores their arguments."""


@dataclass(frozen=True)
class Access:
    """One use of `owner.attribute` in our source."""

    owner: str
    attribute: str
    where: str
    guards: tuple[Guard, ...]


@dataclass
class Usage:
    accesses: list[Access] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)


def read(files: dict[str, str], classes: Classes, api_source: str) -> Usage:
    """Return the accesses of files (name to text). `api_source` is the text of api.py."""
    trees = {name: ast.parse(text) for name, text in files.items()}
    declarations, usage = collect_declarations(trees.values(), classes, api_source), Usage()
    for name, tree in trees.items():
        Reader(name, declarations, usage, ({},)).block(tree.body)
    return usage


class Reader:
    """Reader of one scope of a file."""

    def __init__(
        self, file: str, declarations: Declarations, usage: Usage, scopes: tuple[dict[str, Kind], ...]
    ) -> None:
        self.file, self.declarations, self.usage, self.scopes = file, declarations, usage, scopes
        self.guards: tuple[Guard, ...] = ()
        self.declared: dict[str, Kind] = {}
        """Annotated kinds of names in this scope, for values of unknown kind."""

    # ---- statements

    def block(self, statements: list[ast.stmt]) -> None:
        before = self.guards
        for statement in statements:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                self.scopes[-1].setdefault(statement.name, PYTHON)
        for statement in statements:
            self.statement(statement)
        self.guards = before

    def statement(self, node: ast.stmt) -> None:
        method = getattr(self, f"on_{type(node).__name__.lower()}", None)
        if method is not None:
            method(node)
            return
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.kind(child)

    def on_functiondef(self, node: ast.FunctionDef) -> None:
        for decorator in node.decorator_list:
            self.kind(decorator)
        scope: dict[str, Kind] = {}
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            is_self = argument.arg in ("self", "cls") and argument is arguments[0]
            scope[argument.arg] = PYTHON if is_self else UNKNOWN
            if argument.annotation is not None:
                scope[argument.arg] = annotated(argument.annotation, self.declarations)
        for default in [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]:
            self.kind(default)
        for star in (node.args.vararg, node.args.kwarg):
            if star is not None:
                scope[star.arg] = many(annotated(star.annotation, self.declarations)) if star.annotation else UNKNOWN
        inner = Reader(self.file, self.declarations, self.usage, (*self.scopes, scope))
        inner.guards = self.guards
        inner.block(node.body)

    def on_classdef(self, node: ast.ClassDef) -> None:
        for base in [*node.bases, *(keyword.value for keyword in node.keywords), *node.decorator_list]:
            self.kind(base)
        inner = Reader(self.file, self.declarations, self.usage, (*self.scopes, {}))
        inner.guards = self.guards
        inner.block(node.body)

    def on_if(self, node: ast.If) -> None:
        self.kind(node.test)
        before, guards = self.guards, capabilities(node.test)
        self.guards = (*before, *guards)
        self.block(node.body)
        negated = tuple((name, not value) for name, value in guards) if len(guards) == 1 else ()
        self.guards = (*before, *negated)
        self.block(node.orelse)
        exits = isinstance(node.body[-1], ast.Return | ast.Raise | ast.Continue)
        self.guards = (*before, *negated) if exits else before

    def on_for(self, node: ast.For) -> None:
        self.bind(node.target, self.element(self.kind(node.iter)))
        self.block(node.body)
        self.block(node.orelse)

    def on_while(self, node: ast.While) -> None:
        self.kind(node.test)
        self.block(node.body)

    def on_with(self, node: ast.With) -> None:
        for item in node.items:
            kind = self.kind(item.context_expr)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, kind)
        for statement in node.body:
            self.statement(statement)

    def on_try(self, node: ast.Try) -> None:
        self.block(node.body)
        for handler in node.handlers:
            if handler.name:
                self.scopes[-1][handler.name] = PYTHON
            if handler.type is not None:
                self.kind(handler.type)
            self.block(handler.body)
        self.block(node.orelse)
        self.block(node.finalbody)

    def on_import(self, node: ast.Import) -> None:
        for name in node.names:
            self.scopes[-1][name.asname or name.name.partition(".")[0]] = PYTHON

    def on_importfrom(self, node: ast.ImportFrom) -> None:
        for name in node.names:
            self.scopes[-1][name.asname or name.name] = PYTHON

    def on_assign(self, node: ast.Assign) -> None:
        kind = self.kind(node.value)
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr == "__class__" and isinstance(target.value, ast.Name):
                self.scopes[-1][target.value.id] = Kind("object", kind.name)  # the cast that the bindings need
            else:
                self.bind(target, kind)

    def on_annassign(self, node: ast.AnnAssign) -> None:
        value_kind = UNKNOWN if node.value is None else self.kind(node.value)
        kind = annotated(node.annotation, self.declarations)
        if isinstance(node.target, ast.Name) and kind.what in TENSORRT:
            self.declared[node.target.id] = kind
        self.bind(node.target, value_kind if kind == UNKNOWN else kind)

    def on_augassign(self, node: ast.AugAssign) -> None:
        self.kind(node.target)
        self.kind(node.value)

    def bind(self, target: ast.expr, kind: Kind) -> None:
        if isinstance(target, ast.Name):
            self.scopes[-1][target.id] = self.declared.get(target.id, kind) if kind == UNKNOWN else kind
        elif isinstance(target, ast.Tuple | ast.List):
            parts = [part.value if isinstance(part, ast.Starred) else part for part in target.elts]
            kinds = kind.inner if kind.what == "tuple" and len(kind.inner) == len(parts) else ()
            for i, part in enumerate(parts):
                self.bind(part, kinds[i] if kinds else self.element(kind))
        else:
            self.kind(target)
            self.check_stored(target, kind)

    def check_stored(self, target: ast.expr, kind: Kind) -> None:
        """Report an object of TensorRT that is stored where no annotation declares its type."""
        holder = target.value if isinstance(target, ast.Subscript | ast.Attribute) else target
        undeclared = not isinstance(target, ast.Attribute) or target.attr not in self.declarations.fields
        if self.contains_tensorrt(kind) and undeclared and self.kind(holder) == PYTHON:
            self.usage.unresolved.append(
                f"{self.where(target)}: {ast.unparse(target)} stores an object of TensorRT: annotate it with a name of "
                f"runtimes/trt/api.py"
            )

    def contains_tensorrt(self, kind: Kind) -> bool:
        return kind.what in TENSORRT or any(map(self.contains_tensorrt, kind.inner))

    # ---- expressions

    def kind(self, node: ast.expr) -> Kind:
        method = getattr(self, f"of_{type(node).__name__.lower()}", None)
        if method is not None:
            kind: Kind = method(node)
            return kind
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.kind(child)
            elif isinstance(child, ast.keyword):
                self.kind(child.value)
        return PYTHON

    def of_name(self, node: ast.Name) -> Kind:
        for scope in reversed(self.scopes):
            if node.id in scope:
                return scope[node.id]
        return PYTHON if hasattr(builtins, node.id) or node.id == "__file__" else UNKNOWN

    def of_attribute(self, node: ast.Attribute) -> Kind:
        owner, name = self.kind(node.value), node.attr
        if name.startswith("__"):
            return PYTHON
        if owner.what in TENSORRT:
            return self.access(owner, name, node)
        if owner.what in ("many", "tuple"):
            return Kind("method", name, (owner,))
        if owner == UNKNOWN:
            self.usage.unresolved.append(
                f"{self.where(node)}: {ast.unparse(node)}: what is {ast.unparse(node.value)}? annotate it with a name "
                f"of runtimes/trt/api.py, or with its own type"
            )
            return UNKNOWN
        return MODULE if name == "trt" else self.declarations.fields.get(name, PYTHON)

    def access(self, owner: Kind, name: str, node: ast.AST) -> Kind:
        guards = (*self.guards, ("aot_plugins", True)) if self.belongs_to_plugin(owner) else self.guards
        self.usage.accesses.append(Access(owner.name, name, self.where(node), guards))
        result = self.declarations.classes.get(owner.name, {}).get(name, ["?"])[0]
        if result.startswith("class "):
            return Kind("class", result[6:])
        if result.startswith("many "):
            return many(Kind("object", result[5:]))
        return {"plain": PYTHON, "?": UNKNOWN}.get(result, Kind("object", result))

    def belongs_to_plugin(self, owner: Kind) -> bool:
        return owner == PLUGIN or owner.name in self.declarations.classes.get("plugin", {})

    def of_call(self, node: ast.Call) -> Kind:
        arguments = [self.kind(argument) for argument in node.args if not isinstance(argument, ast.Lambda)]
        for part in (*node.args, *(keyword.value for keyword in node.keywords)):
            if isinstance(part, ast.Lambda):  # its parameters are of the kinds of the call's arguments
                self.read_lambda(part, PYTHON if set(arguments) <= {PYTHON} else UNKNOWN)
        for keyword in node.keywords:
            if not isinstance(keyword.value, ast.Lambda):
                self.kind(keyword.value)
        name = getattr(node.func, "id", "")
        if name in ("getattr", "hasattr", "setattr") and arguments[0] not in (PYTHON,):
            literal = node.args[1]
            if isinstance(literal, ast.Constant) and str(literal.value).startswith("__"):
                return PYTHON
            if arguments[0].what in TENSORRT and isinstance(literal, ast.Constant):
                return self.access(arguments[0], str(literal.value), node) if name != "hasattr" else PYTHON
            self.usage.unresolved.append(f"{self.where(node)}: {ast.unparse(node)}: which attribute is that?")
        if name in ("list", "tuple", "sorted", "reversed", "set", "iter"):
            return many(self.element(arguments[0])) if arguments else PYTHON
        if name in ("next", "max", "min"):
            return self.element(arguments[0])
        if name == "enumerate":
            return many(pair(PYTHON, self.element(arguments[0])))
        if name == "zip":
            return many(pair(*map(self.element, arguments)))
        function = self.kind(node.func)
        if isinstance(node.func, ast.Attribute) and node.func.attr in STORING_METHODS and function == PYTHON:
            for kind in arguments:
                self.check_stored(node.func.value, kind)
        if function.what == "class":
            return Kind("object", function.name)
        if function.what == "method":
            inner = self.element(function.inner[0])
            return {"values": many(inner), "items": many(pair(PYTHON, inner)), "keys": PYTHON}.get(function.name, inner)
        if function == PYTHON:
            kind = self.declarations.functions.get(name or getattr(node.func, "attr", ""), PYTHON)
            return PYTHON if kind == UNKNOWN and not name else kind  # perhaps another class's method
        return function

    def element(self, kind: Kind) -> Kind:
        """Return the kind of an item. TensorRT's own sequences contain numbers."""
        if kind.what in ("many", "tuple"):
            if len(set(kind.inner)) == 1:
                return kind.inner[0]
            containers = all(inner.what in ("many", "tuple", "python") for inner in kind.inner)
            return many(UNKNOWN) if containers else UNKNOWN
        return UNKNOWN if kind == UNKNOWN else PYTHON

    def of_subscript(self, node: ast.Subscript) -> Kind:
        owner = self.kind(node.value)
        self.kind(node.slice)
        if isinstance(node.slice, ast.Slice):
            return owner
        if owner.what == "tuple" and isinstance(node.slice, ast.Constant):
            return owner.inner[node.slice.value]
        return self.element(owner)

    def of_lambda(self, node: ast.Lambda) -> Kind:
        return self.read_lambda(node, UNKNOWN)

    def read_lambda(self, node: ast.Lambda, parameter: Kind) -> Kind:
        scope = {argument.arg: parameter for argument in node.args.args}
        inner = Reader(self.file, self.declarations, self.usage, (*self.scopes, scope))
        inner.guards = self.guards
        inner.kind(node.body)
        return PYTHON

    def of_ifexp(self, node: ast.IfExp) -> Kind:
        self.kind(node.test)
        before, guards = self.guards, capabilities(node.test)
        self.guards = (*before, *guards)
        body = self.kind(node.body)
        self.guards = before
        otherwise = self.kind(node.orelse)
        return otherwise if body == PYTHON else body

    def of_boolop(self, node: ast.BoolOp) -> Kind:
        before, kinds = self.guards, []
        for value in node.values:
            kinds.append(self.kind(value))
            if isinstance(node.op, ast.And):
                self.guards = (*self.guards, *capabilities(value))
        self.guards = before
        return next((kind for kind in kinds if kind != PYTHON), PYTHON)

    def of_namedexpr(self, node: ast.NamedExpr) -> Kind:
        kind = self.kind(node.value)
        self.bind(node.target, kind)
        return kind

    def of_starred(self, node: ast.Starred) -> Kind:
        return self.element(self.kind(node.value))

    def of_tuple(self, node: ast.Tuple) -> Kind:
        kinds = [self.kind(part) for part in node.elts]
        return PYTHON if all(kind == PYTHON for kind in kinds) else pair(*kinds)

    def of_list(self, node: ast.List | ast.Set) -> Kind:
        kinds = [self.kind(part) for part in node.elts]
        return many(next((kind for kind in kinds if kind != PYTHON), PYTHON))

    of_set = of_list

    def of_dict(self, node: ast.Dict) -> Kind:
        for key in node.keys:
            if key is not None:
                self.kind(key)
        return many(next((kind for value in node.values if (kind := self.kind(value)) != PYTHON), PYTHON))

    def of_listcomp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Kind:
        inner = Reader(self.file, self.declarations, self.usage, (*self.scopes, {}))
        inner.guards = self.guards
        for part in node.generators:
            inner.bind(part.target, inner.element(inner.kind(part.iter)))
            for test in part.ifs:
                inner.kind(test)
                inner.guards = (*inner.guards, *capabilities(test))
        if isinstance(node, ast.DictComp):
            inner.kind(node.key)
            return many(inner.kind(node.value))
        return many(inner.kind(node.elt))

    of_setcomp = of_generatorexp = of_dictcomp = of_listcomp

    def where(self, node: Any) -> str:
        return f"{self.file}:{node.lineno}"


def sources(root: Path) -> dict[str, str]:
    """Return the text of our files that may call TensorRT, by path."""
    trt = root / "edge_attn" / "runtimes" / "trt"
    files = {*trt.glob("*.py"), *trt.glob("plugins/*.py")} - {trt / name for name in CUDA_FILES}
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in sorted(files)}
