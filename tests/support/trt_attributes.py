"""Reads our own source: which attributes of TensorRT does it touch, and under which capabilities?

A small type inference over the syntax tree. TensorRT enters as `tensorrt.trt`, or by an annotation with one of the
names of runtimes/trt/api.py. The recorded surface (tests/data/tensorrt-surface.json) contains the types of its
attributes. An attribute of anything whose type is not known is a fault, so nothing of TensorRT is touched unseen.

A touch inside `if tensorrt.capability.NAME:`, or after `if not tensorrt.capability.NAME: raise ...`, counts only
for the versions that have the capability. What belongs to `tensorrt.plugin` counts for those with aot_plugins.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_kinds import MODULE, OURS, PLUGIN, TENSORRT, UNKNOWN, Classes, House, Kind, annotated, many, pair, survey

Guard = tuple[str, bool]
"""A property of Capability, and what it is where the code runs."""
CUDA_FILES = ("cudart.py", "cuda_libraries.py", "plugins/ptx.py")
"""Files in runtimes/trt that call CUDA and not TensorRT."""
KEEPS = ("append", "add", "extend", "insert", "update", "setdefault")
"""Methods by which a container keeps what it is given."""


@dataclass(frozen=True)
class Touch:
    """`owner.attribute`, with the place in our source."""

    owner: str
    attribute: str
    where: str
    guards: tuple[Guard, ...]


@dataclass
class Found:
    touches: list[Touch] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)


def read(files: dict[str, str], classes: Classes, compat: str) -> Found:
    """The touches of some files (name to text); `compat` is the text of trt_compat.py."""
    trees = {name: ast.parse(text) for name, text in files.items()}
    house, found = survey(trees.values(), classes, compat), Found()
    for name, tree in trees.items():
        Reader(name, house, found, ({},)).block(tree.body)
    return found


class Reader:
    """Reads one file, a scope at a time."""

    def __init__(self, file: str, house: House, found: Found, scopes: tuple[dict[str, Kind], ...]) -> None:
        self.file, self.house, self.found, self.scopes = file, house, found, scopes
        self.guards: tuple[Guard, ...] = ()
        self.declared: dict[str, Kind] = {}
        """What a name was annotated with in this scope: it holds where the value does not say."""

    # ---- statements

    def block(self, statements: list[ast.stmt]) -> None:
        before = self.guards
        for statement in statements:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                self.scopes[-1].setdefault(statement.name, OURS)
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
            own = argument.arg in ("self", "cls") and argument is arguments[0]
            scope[argument.arg] = OURS if own else UNKNOWN
            if argument.annotation is not None:
                scope[argument.arg] = annotated(argument.annotation, self.house)
        for default in [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]:
            self.kind(default)
        for star in (node.args.vararg, node.args.kwarg):
            if star is not None:
                scope[star.arg] = many(annotated(star.annotation, self.house)) if star.annotation else UNKNOWN
        inner = Reader(self.file, self.house, self.found, (*self.scopes, scope))
        inner.guards = self.guards
        inner.block(node.body)

    def on_classdef(self, node: ast.ClassDef) -> None:
        for base in [*node.bases, *(keyword.value for keyword in node.keywords), *node.decorator_list]:
            self.kind(base)
        inner = Reader(self.file, self.house, self.found, (*self.scopes, {}))
        inner.guards = self.guards
        inner.block(node.body)

    def on_if(self, node: ast.If) -> None:
        self.kind(node.test)
        before, holds = self.guards, capabilities(node.test)
        self.guards = (*before, *holds)
        self.block(node.body)
        fails = tuple((name, not value) for name, value in holds) if len(holds) == 1 else ()
        self.guards = (*before, *fails)
        self.block(node.orelse)
        leaves = isinstance(node.body[-1], ast.Return | ast.Raise | ast.Continue)
        self.guards = (*before, *fails) if leaves else before

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
                self.scopes[-1][handler.name] = OURS
            if handler.type is not None:
                self.kind(handler.type)
            self.block(handler.body)
        self.block(node.orelse)
        self.block(node.finalbody)

    def on_import(self, node: ast.Import) -> None:
        for name in node.names:
            self.scopes[-1][name.asname or name.name.partition(".")[0]] = OURS

    def on_importfrom(self, node: ast.ImportFrom) -> None:
        for name in node.names:
            self.scopes[-1][name.asname or name.name] = OURS

    def on_assign(self, node: ast.Assign) -> None:
        kind = self.kind(node.value)
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr == "__class__" and isinstance(target.value, ast.Name):
                self.scopes[-1][target.value.id] = Kind("object", kind.name)  # the cast of the bindings
            else:
                self.bind(target, kind)

    def on_annassign(self, node: ast.AnnAssign) -> None:
        given = UNKNOWN if node.value is None else self.kind(node.value)
        kind = annotated(node.annotation, self.house)
        if isinstance(node.target, ast.Name) and kind.what in TENSORRT:
            self.declared[node.target.id] = kind
        self.bind(node.target, given if kind == UNKNOWN else kind)

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
            self.kept(target, kind)

    def kept(self, target: ast.expr, kind: Kind) -> None:
        """What is TensorRT's may be kept only where an annotation says what it is."""
        holder = target.value if isinstance(target, ast.Subscript | ast.Attribute) else target
        lost = not isinstance(target, ast.Attribute) or target.attr not in self.house.fields
        if self.holds_tensorrt(kind) and lost and self.kind(holder) == OURS:
            self.found.unresolved.append(
                f"{self.where(target)}: {ast.unparse(target)} keeps what is TensorRT's: annotate it with a name of "
                f"runtimes/trt/api.py"
            )

    def holds_tensorrt(self, kind: Kind) -> bool:
        return kind.what in TENSORRT or any(map(self.holds_tensorrt, kind.inner))

    # ---- expressions

    def kind(self, node: ast.expr) -> Kind:
        method = getattr(self, f"of_{type(node).__name__.lower()}", None)
        if method is not None:
            given: Kind = method(node)
            return given
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.kind(child)
            elif isinstance(child, ast.keyword):
                self.kind(child.value)
        return OURS

    def of_name(self, node: ast.Name) -> Kind:
        for scope in reversed(self.scopes):
            if node.id in scope:
                return scope[node.id]
        return OURS if hasattr(builtins, node.id) or node.id == "__file__" else UNKNOWN

    def of_attribute(self, node: ast.Attribute) -> Kind:
        owner, name = self.kind(node.value), node.attr
        if name.startswith("__"):
            return OURS
        if owner.what in TENSORRT:
            return self.touch(owner, name, node)
        if owner.what in ("many", "tuple"):
            return Kind("method", name, (owner,))
        if owner == UNKNOWN:
            self.found.unresolved.append(
                f"{self.where(node)}: {ast.unparse(node)}: what is {ast.unparse(node.value)}? annotate it with a name "
                f"of runtimes/trt/api.py, or with its own type"
            )
            return UNKNOWN
        return MODULE if name == "trt" else self.house.fields.get(name, OURS)

    def touch(self, owner: Kind, name: str, node: ast.AST) -> Kind:
        guards = (*self.guards, ("aot_plugins", True)) if self.of_plugin(owner) else self.guards
        self.found.touches.append(Touch(owner.name, name, self.where(node), guards))
        gives = self.house.classes.get(owner.name, {}).get(name, ["?"])[0]
        if gives.startswith("class "):
            return Kind("class", gives[6:])
        if gives.startswith("many "):
            return many(Kind("object", gives[5:]))
        return {"plain": OURS, "?": UNKNOWN}.get(gives, Kind("object", gives))

    def of_plugin(self, owner: Kind) -> bool:
        return owner == PLUGIN or owner.name in self.house.classes.get("plugin", {})

    def of_call(self, node: ast.Call) -> Kind:
        given = [self.kind(argument) for argument in node.args if not isinstance(argument, ast.Lambda)]
        for part in (*node.args, *(keyword.value for keyword in node.keywords)):
            if isinstance(part, ast.Lambda):  # it is given what the call is given
                self.lambdas(part, OURS if set(given) <= {OURS} else UNKNOWN)
        for keyword in node.keywords:
            if not isinstance(keyword.value, ast.Lambda):
                self.kind(keyword.value)
        name = getattr(node.func, "id", "")
        if name in ("getattr", "hasattr", "setattr") and given[0] not in (OURS,):
            literal = node.args[1]
            if isinstance(literal, ast.Constant) and str(literal.value).startswith("__"):
                return OURS
            if given[0].what in TENSORRT and isinstance(literal, ast.Constant):
                return self.touch(given[0], str(literal.value), node) if name != "hasattr" else OURS
            self.found.unresolved.append(f"{self.where(node)}: {ast.unparse(node)}: which attribute is that?")
        if name in ("list", "tuple", "sorted", "reversed", "set", "iter"):
            return many(self.element(given[0])) if given else OURS
        if name in ("next", "max", "min"):
            return self.element(given[0])
        if name == "enumerate":
            return many(pair(OURS, self.element(given[0])))
        if name == "zip":
            return many(pair(*map(self.element, given)))
        function = self.kind(node.func)
        if isinstance(node.func, ast.Attribute) and node.func.attr in KEEPS and function == OURS:
            for kind in given:
                self.kept(node.func.value, kind)
        if function.what == "class":
            return Kind("object", function.name)
        if function.what == "method":
            inner = self.element(function.inner[0])
            return {"values": many(inner), "items": many(pair(OURS, inner)), "keys": OURS}.get(function.name, inner)
        if function == OURS:
            kind = self.house.functions.get(name or getattr(node.func, "attr", ""), OURS)
            return OURS if kind == UNKNOWN and not name else kind  # another's method of the same name, as likely
        return function

    def element(self, kind: Kind) -> Kind:
        """What iterating over it, or taking one item, gives; TensorRT's own sequences hold numbers."""
        if kind.what in ("many", "tuple"):
            if len(set(kind.inner)) == 1:
                return kind.inner[0]
            containers = all(inner.what in ("many", "tuple", "ours") for inner in kind.inner)
            return many(UNKNOWN) if containers else UNKNOWN
        return UNKNOWN if kind == UNKNOWN else OURS

    def of_subscript(self, node: ast.Subscript) -> Kind:
        owner = self.kind(node.value)
        self.kind(node.slice)
        if isinstance(node.slice, ast.Slice):
            return owner
        if owner.what == "tuple" and isinstance(node.slice, ast.Constant):
            return owner.inner[node.slice.value]
        return self.element(owner)

    def of_lambda(self, node: ast.Lambda) -> Kind:
        return self.lambdas(node, UNKNOWN)

    def lambdas(self, node: ast.Lambda, given: Kind) -> Kind:
        scope = {argument.arg: given for argument in node.args.args}
        inner = Reader(self.file, self.house, self.found, (*self.scopes, scope))
        inner.guards = self.guards
        inner.kind(node.body)
        return OURS

    def of_ifexp(self, node: ast.IfExp) -> Kind:
        self.kind(node.test)
        before, holds = self.guards, capabilities(node.test)
        self.guards = (*before, *holds)
        one = self.kind(node.body)
        self.guards = before
        other = self.kind(node.orelse)
        return other if one == OURS else one

    def of_boolop(self, node: ast.BoolOp) -> Kind:
        before, kinds = self.guards, []
        for value in node.values:
            kinds.append(self.kind(value))
            if isinstance(node.op, ast.And):
                self.guards = (*self.guards, *capabilities(value))
        self.guards = before
        return next((kind for kind in kinds if kind != OURS), OURS)

    def of_namedexpr(self, node: ast.NamedExpr) -> Kind:
        kind = self.kind(node.value)
        self.bind(node.target, kind)
        return kind

    def of_starred(self, node: ast.Starred) -> Kind:
        return self.element(self.kind(node.value))

    def of_tuple(self, node: ast.Tuple) -> Kind:
        kinds = [self.kind(part) for part in node.elts]
        return OURS if all(kind == OURS for kind in kinds) else pair(*kinds)

    def of_list(self, node: ast.List | ast.Set) -> Kind:
        kinds = [self.kind(part) for part in node.elts]
        return many(next((kind for kind in kinds if kind != OURS), OURS))

    of_set = of_list

    def of_dict(self, node: ast.Dict) -> Kind:
        for key in node.keys:
            if key is not None:
                self.kind(key)
        return many(next((kind for value in node.values if (kind := self.kind(value)) != OURS), OURS))

    def of_listcomp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Kind:
        inner = Reader(self.file, self.house, self.found, (*self.scopes, {}))
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


def capabilities(test: ast.expr) -> tuple[Guard, ...]:
    """What holds where a condition does: `tensorrt.capability.NAME`, `not` of it, and such joined by `and`."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return tuple(guard for value in test.values for guard in capabilities(value))
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = capabilities(test.operand)
        return tuple((name, not value) for name, value in inner) if len(inner) == 1 else ()
    owner = getattr(test, "value", None)
    if isinstance(test, ast.Attribute) and getattr(owner, "attr", getattr(owner, "id", "")) == "capability":
        return ((test.attr, True),)
    return ()


def sources(house: Path) -> dict[str, str]:
    """Return the text of our files that call TensorRT, by path; those that call CUDA alone are left out."""
    trt = house / "edge_attn" / "runtimes" / "trt"
    files = {*trt.glob("*.py"), *trt.glob("plugins/*.py")} - {trt / name for name in CUDA_FILES}
    return {path.relative_to(house).as_posix(): path.read_text(encoding="utf-8") for path in sorted(files)}
