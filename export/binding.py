"""A user's module as a module from flat tensors to flat tensors, in the order of their descriptions.

Inputs are bound to the parameters of `forward` by name where all names are parameters, else by position. One parameter
takes several tensors where the module expects a tuple, list or dict. Outputs with keys are taken by key.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge_attn.errors import ExportError
from edge_attn.export.descriptions import Tree
from edge_attn.export.failures import explain_run

MAX_BINDINGS = 64
"""Maximum ways of grouping inputs that are tried."""
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Binding:
    """Arguments of `forward` as indices of the flat inputs."""

    positional: tuple[Tree, ...]
    named: Mapping[str, Tree] = dataclasses.field(default_factory=dict)

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of `forward`."""
        named = {name: _fill(tree, tensors) for name, tree in self.named.items()}
        return [_fill(tree, tensors) for tree in self.positional], named


class FlatModule(nn.Module):
    """`module` with flat tensors as inputs and outputs."""

    def __init__(self, module: nn.Module, binding: Binding, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.binding, self.names = module, binding, tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of the module's outputs, in the order of their descriptions."""
        positional, named = self.binding.arguments(tensors)
        return select(flatten(self.module(*positional, **named)), self.names)


def bind(
    module: nn.Module, structure: Mapping[str, Tree], names: Sequence[str], tensors: Sequence[Tensor]
) -> FlatModule:
    """Return `module` from flat tensors to flat tensors; of several bindings, the first with which it runs.

    Args:
        module: the user's module.
        structure: each described argument, as indices of the flat inputs.
        names: names of the outputs.
        tensors: example inputs.

    Raises:
        ExportError: the names fit no parameters, or the module does not run.
    """
    failure: Exception | None = None
    for binding in itertools.islice(_bindings(_parameters(module), structure), MAX_BINDINGS):
        positional, named = binding.arguments(tensors)
        try:
            with torch.no_grad():
                module(*positional, **named)
        except Exception as error:  # a module of the user raises anything
            failure = failure or error
            continue
        kind = type(type(module).__name__, (FlatModule,), {"__doc__": FlatModule.__doc__})  # errors name the module
        flat: FlatModule = kind(module, binding, names).eval()
        return flat
    assert failure is not None
    raise ExportError(explain_run(module, failure, tensors, list(structure))) from failure


def flatten(value: Any, key: str = "", place: str = "") -> list[tuple[str, Tensor]]:
    """Return the tensors of nested outputs with their keys ("" where they have none), without None.

    Raises:
        ExportError: an output is neither a tensor nor a tuple, list, dict or dataclass of tensors.
    """
    if value is None:
        return []
    if isinstance(value, Tensor):
        return [(key, value)]
    if isinstance(value, Mapping):
        parts: list[tuple[Any, Any]] = list(value.items())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = list(zip(value._fields, value, strict=True))
    elif isinstance(value, tuple | list):
        parts = [("", part) for part in value]
    else:
        raise ExportError(
            f"output {place or 1} of the module is of type {type(value).__name__}; return tensors, or tuples, lists or "
            "dicts of them"
        )
    places = (f"{place}.{i}" if place else str(i) for i in range(1, len(parts) + 1))
    return [leaf for (name, part), where in zip(parts, places, strict=True) for leaf in flatten(part, str(name), where)]


def select(leaves: Sequence[tuple[str, Tensor]], names: Sequence[str]) -> tuple[Tensor, ...]:
    """Return the outputs in the order of `names`: by key where all names are keys, else by position.

    Raises:
        ExportError: their number differs, or a name is the key of an output at another place.
    """
    keys = [key for key, _ in leaves]
    if len(set(keys)) == len(keys) and set(names) <= set(keys):
        by_key = dict(leaves)
        return tuple(by_key[name] for name in names)
    if len(leaves) != len(names):
        shown = ", ".join(key or str(i) for i, key in enumerate(keys, 1))
        raise ExportError(
            f"the module has {len(leaves)} outputs ({shown}), expected {len(names)} ({', '.join(names)}): describe each"
        )
    for i, name in enumerate(names):
        if name in keys and keys[i] != name:
            raise ExportError(
                f"output {name!r} is described at place {i + 1}, the module returns the key {keys[i]!r} there: name "
                "all outputs by the module's keys, or none"
            )
    return tuple(tensor for _, tensor in leaves)


def _fill(tree: Tree, tensors: Sequence[Tensor]) -> Any:
    if isinstance(tree, int):
        return tensors[tree]
    if isinstance(tree, dict):
        return {key: _fill(part, tensors) for key, part in tree.items()}
    return type(tree)(_fill(part, tensors) for part in tree)


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of `forward`; those of a scripted module are in its schema."""
    if not isinstance(module, torch.jit.ScriptModule):
        return list(inspect.signature(module.forward).parameters.values())
    return [
        inspect.Parameter(
            argument.name,
            inspect.Parameter.KEYWORD_ONLY if argument.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None if argument.has_default_value() else inspect.Parameter.empty,
        )
        for argument in cast(Any, module.forward).schema.arguments[1:]
    ]


def _bindings(parameters: Sequence[inspect.Parameter], structure: Mapping[str, Tree]) -> Iterator[Binding]:
    """Yield the ways to pass the described arguments, the most literal first.

    Raises:
        ExportError: no way fits the names.
    """
    known = {p.name: p for p in parameters if p.kind in (*POSITIONAL, inspect.Parameter.KEYWORD_ONLY)}
    required = [name for name, p in known.items() if p.default is inspect.Parameter.empty]
    only_named = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    rest = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    if set(required) <= set(structure) and (rest or set(structure) <= set(known)):
        positional = [name for name, p in known.items() if p.kind is inspect.Parameter.POSITIONAL_ONLY]
        positional = [name for name in positional if name in structure]
        named = {name: tree for name, tree in structure.items() if name not in positional}
        yield Binding(tuple(structure[name] for name in positional), named)
        return
    missing = [name for name in only_named if name in required and name not in structure]
    if missing:
        raise ExportError(f"forward needs {missing[0]!r} by keyword; describe an input of that name")
    named = {name: structure[name] for name in only_named if name in structure}
    items = [(name, tree) for name, tree in structure.items() if name not in named]
    slots = [p.name for p in parameters if p.kind in POSITIONAL]
    variable = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    least = sum(name in required for name in slots)
    fits = False
    for groups in _groupings(items, slots, least, variable):
        fits = True
        for trees in itertools.product(
            *([tree for _, tree in group[:1]] if len(group) == 1 else _nested(group) for group in groups)
        ):
            yield Binding(tuple(trees), named)
    for groups in _groupings(items, slots, least, variable):  # a tuple or dict of one tensor
        for trees in itertools.product(*(_nested(group) for group in groups)):
            yield Binding(tuple(trees), named)
    if not fits:
        raise ExportError(
            f"the inputs {', '.join(structure)} do not fit forward({', '.join(p.name for p in parameters)}): name all "
            "as its parameters, or list them in its order; a tuple or dict parameter takes a list or dict of "
            "descriptions"
        )


def _groupings(
    items: Sequence[tuple[str, Tree]], slots: Sequence[str], least: int, variable: bool
) -> Iterator[list[Sequence[tuple[str, Tree]]]]:
    """Yield the ways to divide inputs among parameters in order; an input with a parameter's name stands at it."""
    counts = [len(items)] if variable and len(items) >= least else []
    counts += [n for n in range(min(len(items), len(slots)), max(least, 1) - 1, -1) if n not in counts]
    for count in counts:
        for cuts in itertools.combinations(range(1, len(items)), count - 1):
            groups = [items[a:b] for a, b in zip((0, *cuts), (*cuts, len(items)), strict=True)]
            at = {
                name: (slots[i] if i < len(slots) else "", len(group))
                for i, group in enumerate(groups)
                for name, _ in group
            }
            if all(at[name][0] == name for name in at if name in slots and at[name][1] == 1) and not any(
                name in slots and at[name][1] > 1 and at[name][0] != name for name in at
            ):
                yield groups


def _nested(group: Sequence[tuple[str, Tree]]) -> list[Tree]:
    trees = [tree for _, tree in group]
    return [tuple(trees), dict(group), list(trees)]
