"""The nodes of an ONNX file, read from its bytes, for machines that have TensorRT and no onnx.

Reads only what names a node: protobuf's wire format is a list of fields, and weights are skipped by their length.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from edge_attn.errors import BundleError

MODEL_GRAPH, MODEL_FUNCTIONS, GRAPH_NODE = 7, 25, 1
FUNCTION_NAME, FUNCTION_NODE, FUNCTION_DOMAIN = 1, 7, 10
NODE_NAME, NODE_OP, NODE_ATTRIBUTE, NODE_DOMAIN, NODE_METADATA = 3, 4, 5, 7, 9
ATTRIBUTE_GRAPHS = (6, 11)
KEY, VALUE = 1, 2
"""Numbers of fields in onnx.proto."""
SCOPES = "pkg.torch.onnx.name_scopes"
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Node:
    name: str
    op: str
    domain: str
    module: str
    """Path of the torch module that it came from, as `model.encoder.embedding`; empty if the file does not say."""

    def __str__(self) -> str:
        op = self.op if self.domain in STANDARD else f"{self.domain}::{self.op}"
        return f"{op} {self.name!r}" + (f" of {self.module}" if self.module else "")


@dataclass(frozen=True)
class Nodes:
    """What an ONNX file holds, by name."""

    nodes: tuple[Node, ...]
    """Of the graph, of the graphs inside it, and of the functions."""
    functions: tuple[tuple[str, str], ...]
    """Domain and name of each."""

    def named(self, name: str, op: str = "") -> Node | None:
        """The node of that name, and of that op if one is given; nameless nodes are not found."""
        fitting = (node for node in self.nodes if name and node.name == name and op in ("", node.op))
        return next(fitting, None)


def read_nodes(model: bytes) -> Nodes:
    """
    Raises:
        BundleError: not an ONNX file.
    """
    nodes: list[Node] = []
    functions = []
    try:
        for number, content in _fields(memoryview(model)):
            if number == MODEL_GRAPH:
                nodes += _graph(content, GRAPH_NODE)
            elif number == MODEL_FUNCTIONS:
                named = dict(_fields(content))
                functions.append((_text(named.get(FUNCTION_DOMAIN)), _text(named.get(FUNCTION_NAME))))
                nodes += _graph(content, FUNCTION_NODE)
    except (IndexError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"a graph is not ONNX, or was damaged: {error}") from error
    if not nodes:
        raise BundleError("a graph is not ONNX, or has no nodes")
    return Nodes(tuple(nodes), tuple(functions))


def _graph(content: memoryview, field: int) -> Iterator[Node]:
    for number, node in _fields(content):
        if number == field:
            yield from _node(node)


def _node(content: memoryview) -> Iterator[Node]:
    texts = {NODE_NAME: "", NODE_OP: "", NODE_DOMAIN: ""}
    module, inner = "", []
    for number, value in _fields(content):
        if number in texts:
            texts[number] = _text(value)
        elif number == NODE_METADATA:
            entry = dict(_fields(value))
            if _text(entry.get(KEY)) == SCOPES:
                module = _module(_text(entry.get(VALUE)))
        elif number == NODE_ATTRIBUTE:
            inner += [graph for field, graph in _fields(value) if field in ATTRIBUTE_GRAPHS]
    yield Node(texts[NODE_NAME], texts[NODE_OP], texts[NODE_DOMAIN], module)
    for graph in inner:
        yield from _graph(graph, GRAPH_NODE)


def _module(scopes: str) -> str:
    """The innermost module of torch's list of scopes, which ends with the node itself."""
    try:
        path = ast.literal_eval(scopes)
        return str(path[-2]) if len(path) > 1 else ""
    except (ValueError, SyntaxError, TypeError, IndexError, RecursionError, MemoryError):
        return ""


def _text(value: memoryview | None) -> str:
    return "" if value is None else bytes(value).decode()


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that has a length; numbers are passed over."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(content, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            size, at = _varint(content, at)
            if at + size > len(content):
                raise IndexError("a field is longer than the file")
            yield tag >> 3, content[at : at + size]
            at += size
        else:
            raise IndexError(f"a field of kind {kind}")


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("a number is too long")
