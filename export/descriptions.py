"""Descriptions of a module's inputs and outputs, as users write them, to specs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_attn.errors import ExportError
from edge_attn.spec import Axis, InputSpec, TensorSpec

DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
AXIS = re.compile(r"[A-Za-z_][\w.]*([-+*/ ]+[\w.]+)*")
NAME = re.compile(r"[^\s\x00-\x1f]+")
ORDERS = ("ascending", "descending")

Tree = Any
"""An input of forward as indices of tensors: an index, or a tuple, list or dict of such trees."""


def inputs(descriptions: Mapping[str, Any], axes: Mapping[str, Any] | None) -> tuple[list[InputSpec], dict[str, Tree]]:
    """Return the flat inputs, and by name the structure of each described argument as indices of them.

    Args:
        descriptions: by name a description (dtype, shape, perhaps values), or a list or dict of such descriptions for
            a nested argument, whose tensors are named `argument.key`.
        axes: described axes, to name one that no input has.

    Raises:
        ExportError: a description is not one.
    """
    flat: list[InputSpec] = []

    def add(name: str, description: Any) -> Tree:
        if _nested(description):
            pairs = description.items() if isinstance(description, Mapping) else enumerate(description)
            parts = {key: add(f"{name}.{key}", part) for key, part in pairs}
            return parts if isinstance(description, Mapping) else tuple(parts.values())
        flat.append(_input(name, description))
        return len(flat) - 1

    structure = {name: add(_name(name), value) for name, value in _mapping("inputs", descriptions).items()}
    known = {axis for tensor in flat for axis in tensor.shape if isinstance(axis, str)}
    for tensor in flat:
        ends = [end for end in tensor.values if isinstance(end, str)]
        used = {re.sub(r"-\d+$", "", end) for end in ends} | ({tensor.some} - {""})
        if used - known:
            raise ExportError(f"{tensor.name}: no input has an axis {min(used - known)!r}")
    for axis in sorted(set(axes or {}) - known):
        raise ExportError(f"axes describes {axis!r}, which is no axis of an input; the axes are {', '.join(known)}")
    return flat, structure


def outputs(descriptions: Mapping[str, Any], names: Sequence[str]) -> list[TensorSpec]:
    """Return the outputs.

    Args:
        descriptions: dtype and shape of each output, by name.
        names: names of the inputs, which an output must not have.

    Raises:
        ExportError: a description is not one, or a name is an input's.
    """
    for name in _mapping("outputs", descriptions):
        if name in names:
            raise ExportError(f"{name!r} names an input and an output; ONNX needs two names: call one next_{name}")
    return [TensorSpec(_name(name), *_dtype_and_shape(name, value)) for name, value in descriptions.items()]


def axes(descriptions: Mapping[str, Any] | None) -> dict[str, Axis]:
    """Return the described sizes of axes: an `Axis`, its fields as a dict, or (minimum, maximum).

    Raises:
        ExportError: a description is neither.
    """
    result = {}
    for name, value in _mapping("axes", descriptions or {}).items():
        try:
            if isinstance(value, Axis):
                result[name] = value
            else:
                result[name] = Axis(**value) if isinstance(value, Mapping) else Axis(*value)
        except (TypeError, ValueError) as error:
            raise ExportError(
                f"axes: {name} needs a dict of minimum, maximum and multiple, got {value!r} ({_line(error)})"
            ) from error
    return result


def _mapping(kind: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ExportError(f"{kind} must be a dict from names to descriptions, got {_short(value)}")
    return value


def _nested(description: Any) -> bool:
    if isinstance(description, Mapping):
        return True
    parts = description if isinstance(description, Sequence) and not isinstance(description, str) else ()
    return bool(parts) and all(
        isinstance(part, Mapping) or (isinstance(part, tuple | list) and _starts_with_dtype(part)) for part in parts
    )


def _starts_with_dtype(part: Sequence[Any]) -> bool:
    return bool(part) and not isinstance(part[0], int) and (not isinstance(part[0], str) or _dtype(part[0]) in DTYPES)


def _name(name: Any) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ExportError(f"the name of an input or output is a word, got {name!r}")
    return name


def _dtype(dtype: Any) -> str:
    text = str(dtype).removeprefix("torch.")
    try:
        return text if text in DTYPES else np.dtype(dtype).name
    except TypeError:
        return text


def _dtype_and_shape(name: str, description: Any) -> tuple[str, tuple[int | str, ...]]:
    try:
        dtype, shape, *_ = description
        shape = tuple(shape) if not isinstance(shape, str) else None
    except (TypeError, ValueError):
        shape = None
    if shape is None or len(description) > 3:
        raise ExportError(f"{name}: expected a dtype, a shape and perhaps a range, got {_short(description)}")
    if _dtype(dtype) not in DTYPES:
        raise ExportError(
            f"{name}: expected a dtype, a shape and perhaps a range, got the dtype {str(dtype)!r}; "
            f"known: {', '.join(DTYPES)}"
        )
    for axis in shape:
        if axis is None or (isinstance(axis, int) and axis < 0):
            raise ExportError(f"{name}: an axis of any size needs a name, such as 'batch', got {axis!r}")
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer | str):
            raise ExportError(f"{name}: an axis is a number or a name, got {axis!r}")
        if isinstance(axis, str) and not AXIS.fullmatch(axis):
            raise ExportError(f"{name}: the name of an axis is one word, such as 'batch_size', got {axis!r}")
        if isinstance(axis, str) and " " in axis and not re.search("[-+*/]", axis):
            raise ExportError(f"{name}: the name of an axis is one word, such as 'batch_size', got {axis!r}")
    return _dtype(dtype), tuple(axis if isinstance(axis, str) else int(axis) for axis in shape)


def _input(name: str, description: Any) -> InputSpec:
    dtype, shape = _dtype_and_shape(name, description)
    for axis in shape:
        if isinstance(axis, str) and re.search("[-+*/ ]", axis):
            raise ExportError(f"{name}: an input's axis is a name without arithmetic, got {axis!r}")
    third = description[2] if len(description) == 3 else {}
    settings = dict(third) if isinstance(third, Mapping) else {"values": third}
    if settings.keys() - {"values", "order", "some"}:
        raise ExportError(f"{name}: known settings are values, order and some, got {_short(settings)}")
    values = settings.get("values", ())
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) not in (0, 2):
        raise ExportError(f"{name}: a range is [minimum, maximum], got {_short(values)}")
    kinds = (int, float) if dtype.startswith("float") else (int, str)
    if any(not isinstance(end, kinds) or isinstance(end, bool) for end in values) or (values and dtype == "bool"):
        raise ExportError(f"{name}: the range {_short(values)} does not fit {dtype}")
    if len(values) == 2 and all(isinstance(end, int | float) for end in values) and not values[0] <= values[1]:
        raise ExportError(f"{name}: the range {_short(values)} is empty")
    order, some = settings.get("order", ""), settings.get("some", "")
    if order not in ("", *ORDERS) or (order and dtype == "bool"):
        raise ExportError(f"{name}: the order is ascending or descending, got {_short(order)}")
    if some and (dtype != "bool" or some not in shape):
        raise ExportError(f"{name}: some is for a boolean input and names one of its axes, got {_short(some)}")
    return InputSpec(name, dtype, shape, tuple(values), order, some)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
