"""Random changes of JSON values, bytes, arrays and ONNX graphs, each a function of a `random.Random` alone."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from random import Random
from typing import Any

import numpy as np
import onnx
from bad_graphs import RUN_ERRORS
from onnx import TensorProto

NUMBERS = (0, -1, 1, 2, 3, 7, 255, 10**5, 10**9, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**40)
FLOATS = (0.0, -0.0, 0.5, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    " ",
    "\0",
    "a\nb\r\x1b[31m",
    "\ud800",
    "é\u2028\ufeff",
    "x" * 5000,
    "../outside/secret.txt",
    "/etc/passwd",
    "file:///etc/passwd",
    "%s{0}",
    "1",
    "gru",
    "fp16",
    "int8",
    "float64",
    "batch",
    "src-1",
)
DTYPES = ("float64", "float16", "int8", "int64", "uint64", "bool", "complex64", "U3", "S2", "M8[s]")
OPERATORS = ("Add", "MatMul", "Exp", "Softmax", "Gather", "Reshape", "Tile", "Loop", "NonZero", "Unknown", "Concat")


def hostile(random: Random) -> Any:
    """Return a value that a file of this kind rarely contains."""
    return random.choice(
        [
            None,
            True,
            False,
            random.choice(NUMBERS),
            random.choice(FLOATS),
            random.choice(TEXTS),
            [],
            {},
            [random.choice(NUMBERS)] * random.choice((1, 2, 1000)),
            {random.choice(TEXTS): random.choice(NUMBERS)},
            nested(random.choice((5, 60))),
        ]
    )


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def change_json(random: Random, value: Any) -> Any:
    """Return a copy of a JSON value with one to three changes anywhere in it."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = _change_once(random, value)
    return value


def _change_once(random: Random, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or random.random() < 0.02:
        return _near(random, value)
    key = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
    inner = value[key]
    action = random.random()
    if isinstance(inner, dict | list) and inner and action < 0.75:
        value[key] = _change_once(random, inner)
    elif action < 0.85:
        value[key] = _near(random, inner)
    elif action < 0.93:
        del value[key]
    elif isinstance(value, dict):
        value[random.choice((*TEXTS, *map(str, value)))] = copy.deepcopy(inner)
    else:
        value.insert(random.randrange(len(value) + 1), copy.deepcopy(inner))
    return value


def _near(random: Random, value: Any) -> Any:
    """Return a value of the same type for a value, or a hostile one."""
    if random.random() < 0.5:
        return hostile(random)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((value + 1, value - 1, value * 2, -value, *NUMBERS))
    if isinstance(value, float):
        return random.choice((value * 2, -value, *FLOATS))
    if isinstance(value, str):
        return random.choice((value + "x", value[:-1], value.upper(), value * 300, *TEXTS))
    return hostile(random)


def json_text(random: Random, value: Any) -> bytes:
    """Return the text of a changed JSON value, rarely one that nests or repeats beyond measure."""
    if random.random() < 0.03:
        return random.choice((b"", b"{", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 6000, b"\xff\xfe{}", b"null"))
    return json.dumps(change_json(random, value), sort_keys=random.random() < 0.5).encode()


def change_bytes(random: Random, data: bytes) -> bytes:
    """Return changed bytes: flipped, cut, inserted, repeated, or others."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at = random.randrange(len(changed) + 1)
        size = min(random.choice((1, 1, 2, 8, 64, 1024)), len(changed) - at)
        action = random.randrange(6)
        if action == 0:
            for i in range(at, at + size):
                changed[i] ^= 1 << random.randrange(8)
        elif action == 1:
            changed[at : at + size] = random.randbytes(size)
        elif action == 2:
            del changed[at : at + size]
        elif action == 3:
            changed[at:at] = changed[at : at + size] * random.choice((1, 3, 100))
        elif action == 4:
            changed[at : at + size] = bytes([random.choice((0, 0x7F, 0x80, 0xFF))]) * size
        elif random.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def change_arrays(random: Random, data: bytes) -> bytes:
    """Return an npz with one changed array, or with a member that is no array."""
    with np.load(io.BytesIO(data)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = random.choice(sorted(arrays))
    array, raw = arrays[name], {}
    action = random.randrange(9)
    if action == 0:
        dtype = random.choice(
            ("float64", "float16", "int8", "int64", "uint64", "bool", "complex64", "U3", "S2", "M8[s]")
        )
        arrays[name] = array.astype(bool).astype(dtype) if dtype[0] in "USM" else array.astype(dtype)
    elif action == 1:
        arrays[name] = array[: random.choice((0, 1, len(array) - 1))]
    elif action == 2:
        arrays[name] = np.reshape(
            array, random.choice(((-1,), (1, *array.shape), (*array.shape, 1), array.shape[::-1]))
        )
    elif action == 3 and array.size:
        flat = array.reshape(-1).copy()
        values = NUMBERS[:12] if array.dtype.kind in "iu" else (*FLOATS, -1.0, 1e30)
        flat[[random.randrange(flat.size) for _ in range(random.choice((1, 10)))]] = np.array(
            random.choice(values), "float64"
        ).astype(array.dtype)
        arrays[name] = flat.reshape(array.shape)
    elif action == 4:
        del arrays[name]
    elif action == 5:
        arrays[random.choice(TEXTS[7:]).strip("/")] = array
    elif action == 6:
        raw[f"{name}.npy"] = _npy(random, array)
    elif action == 7:
        arrays[name] = np.zeros((1 << 27,), "float32")  # half a gigabyte, in half a megabyte
    else:
        return change_bytes(random, data)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{key: value for key, value in arrays.items() if f"{key}.npy" not in raw})
    if raw:
        with zipfile.ZipFile(buffer, "a") as zipped:
            for key, content in raw.items():
                zipped.writestr(zipfile.ZipInfo(key), content)
    return buffer.getvalue()


def _npy(random: Random, array: np.ndarray) -> bytes:
    """Return a member of an npz whose header is not its content's."""
    header = random.choice(
        (
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**40},), }}",
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({-1},), }}",
            f"{{'descr': '|O', 'fortran_order': False, 'shape': {array.shape}, }}",
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': {array.shape}, 'more': 1}}",
            f"{{'descr': '|V0', 'fortran_order': False, 'shape': ({2**31}, {2**31}), }}",
            "(" * 10_001,
            "__import__('os').system('touch outside')",
            "",
        )
    )
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + array.tobytes()[:4096]


def change_graph(random: Random, data: bytes) -> bytes:
    """Return an ONNX file with one to three changes of nodes, attributes, shapes, types, constants or its head."""
    model = onnx.load_from_string(data)
    if random.random() < 0.15:
        change, _ = RUN_ERRORS[random.choice(sorted(RUN_ERRORS))]
        if any(output.name == "log_probs" for output in model.graph.output):
            change(model)
            return model.SerializeToString()
    for _ in range(random.choice((1, 1, 2, 3))):
        random.choice(GRAPH_CHANGES)(random, model)
    try:
        return model.SerializeToString()
    except ValueError:  # a number that the format cannot hold
        return data


def _node(random: Random, model: onnx.ModelProto) -> onnx.NodeProto:
    functions = [function.node for function in model.functions if function.node]
    nodes = random.choice([model.graph.node, model.graph.node, *functions]) or model.graph.node
    return random.choice(nodes)


def _change_attribute(random: Random, model: onnx.ModelProto) -> None:
    node = next((n for n in (_node(random, model) for _ in range(30)) if n.attribute), None)
    if node is None:
        return
    attribute = random.choice(node.attribute)
    attribute.i = random.choice(NUMBERS[:11])
    attribute.f = random.choice(FLOATS)
    if attribute.ints:
        attribute.ints[random.randrange(len(attribute.ints))] = random.choice(NUMBERS[:11])
    if random.random() < 0.2:
        attribute.type = random.choice((1, 2, 3, 6, 7))


def _change_wiring(random: Random, model: onnx.ModelProto) -> None:
    node, other = _node(random, model), _node(random, model)
    if node.input and other.output:
        node.input[random.randrange(len(node.input))] = random.choice(
            ("", "tokens", "source", random.choice(other.output))
        )


def _change_operator(random: Random, model: onnx.ModelProto) -> None:
    node = _node(random, model)
    node.op_type = random.choice(
        (
            "Add",
            "MatMul",
            "Exp",
            "Softmax",
            "Gather",
            "Reshape",
            "Tile",
            "Loop",
            "NonZero",
            "Unknown",
            "Concat",
            "Expand",
        )
    )
    if random.random() < 0.2:
        node.domain = random.choice(("", "ai.onnx.ml", "com.microsoft", "edge_attn", "x"))


def _remove_node(random: Random, model: onnx.ModelProto) -> None:
    del model.graph.node[random.randrange(len(model.graph.node))]


def _change_dimension(random: Random, model: onnx.ModelProto) -> None:
    tensor = random.choice([*model.graph.input, *model.graph.output, *model.graph.value_info])
    dims = tensor.type.tensor_type.shape.dim
    if dims and random.random() < 0.7:
        dim = random.choice(dims)
        dim.Clear()
        if random.random() < 0.5:
            dim.dim_value = random.choice(NUMBERS[:11])
        else:
            dim.dim_param = random.choice(("batch", "src", "", "x" * 999))
    elif random.random() < 0.5:
        tensor.type.tensor_type.elem_type = random.choice((0, 1, 7, 8, 9, 10, 11, 16, 99))
    else:
        dims.add().dim_value = random.choice(NUMBERS[:9])


def _change_constant(random: Random, model: onnx.ModelProto) -> None:
    tensors = list(model.graph.initializer)
    tensors += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    if not tensors:
        return
    tensor = random.choice(tensors)
    action = random.randrange(5)
    if action == 0 and tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(NUMBERS[:11])
    elif action == 1:
        tensor.data_type = random.choice((0, 1, 7, 8, 9, 10, 11, 16, 99))
    elif action == 2:
        tensor.raw_data = change_bytes(random, tensor.raw_data)
    elif action == 3 and tensor.data_type == TensorProto.INT64:
        values = onnx.numpy_helper.to_array(tensor)
        changed = np.full_like(values, random.choice(NUMBERS[:11]))
        tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    elif action == 4:
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", random.choice(TEXTS[7:9])), ("offset", "0"), ("length", "8")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value


def _change_head(random: Random, model: onnx.ModelProto) -> None:
    action = random.randrange(4)
    if action == 0:
        model.ir_version = random.choice((0, 1, 3, 11, 99, 2**31))
    elif action == 1 and model.opset_import:
        random.choice(model.opset_import).version = random.choice((0, 1, 7, 17, 23, 99))
    elif action == 2 and model.functions:
        del model.functions[random.randrange(len(model.functions))]
    else:
        name = random.choice(TEXTS).encode(errors="replace").decode()  # protobuf takes no lone surrogate
        random.choice([*model.graph.input, *model.graph.output]).name = name


GRAPH_CHANGES = (
    _change_attribute,
    _change_wiring,
    _change_operator,
    _remove_node,
    _change_dimension,
    _change_constant,
    _change_constant,
    _change_head,
)


def change_lines(random: Random, data: bytes) -> bytes:
    """Return changed lines of text: bytes, separators, repetitions, one long line."""
    lines = data.split(b"\n")
    for _ in range(random.choice((1, 2, 5))):
        at = random.randrange(len(lines))
        lines[at] = random.choice(
            (
                change_bytes(random, lines[at] or b"a"),
                lines[at].replace(b"\t", random.choice((b"", b"\t\t", b" ", b"\t\t\t"))),
                lines[at] * random.choice((2, 1000)),
                b"",
                "\ufeff".encode() + lines[at],
                "e\u0301\u200b\u2028\xa0 \U0001f600".encode() + lines[at],
                b"\xed\xa0\x80" + lines[at],
                lines[at] + b"\r",
                (b"a " if random.random() < 0.5 else b"a") * random.choice((600, 300_000)),
                b"\0",
            )
        )
    return random.choice((b"\n", b"\n", b"\r\n", b"\r")).join(lines)
