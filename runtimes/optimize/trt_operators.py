"""Ops that a version of TensorRT reads, checked before anything is built, so that an error names the module.

From the parser's own tables of operators: an opset for each version, ops that no version reads, ops that later ones
read, and what must be constant. That a graph passes is no proof that it builds; TensorRT's parser has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set

import onnx

from edge_attn.errors import InputError, UsageError
from edge_attn.runtimes.onnx_graph import Constants, module_path, nodes, opset
from edge_attn.runtimes.optimize.float16 import SUMS
from edge_attn.runtimes.trt.api import OLDEST
from edge_attn.versions import parse_version

Version = tuple[int, ...]

WITH_PLUGINS: Version = (10, 13)
"""First version that takes our plugins."""
OPSETS: dict[Version, int] = {(10, 3): 20, (10, 14): 23, (10, 15): 24, (11, 0): 27}
"""Newest opset that a version, and those after it, reads."""
SINCE: dict[str, Version] = {
    "Attention": (10, 14),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "TensorScatter": (10, 15),
    "Swish": (11, 0),
}
SIZED = ("Compress", "NonMaxSuppression", "NonZero", "Unique")
"""Ops whose output size depends on values, so that no buffer can be allocated before the run."""
REFUSED = (
    *("Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Col2Im", "ConcatFromSequence"),
    *("ConvInteger", "DFT", "Det", "DynamicQuantizeLinear", "MatMulInteger", "MaxRoiPool", "MaxUnpool"),
    *("MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement"),
    *("OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch", "STFT", "SequenceAt"),
    *("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap"),
    *("SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit"),
    "TfIdfVectorizer",
)
MAX_K = 3840


def version(text: str) -> Version:
    """Return 10.3 as (10, 3).

    Raises:
        UsageError: not a version, or older than the oldest supported one.
    """
    if not re.fullmatch(r"\d+(\.\d+){1,3}", text):
        raise UsageError(f"a version is two to four numbers, as 10.3, got {text!r}")
    numbers = parse_version(text)
    if numbers < OLDEST:
        raise UsageError(f"the oldest supported version of TensorRT is {format_version(OLDEST)}, got {text}")
    return numbers


def check(name: str, model: onnx.ModelProto, oldest: Version, plugins: Set[str] = frozenset()) -> None:
    """Refuse a graph that TensorRT `oldest` cannot read.

    Args:
        name: name of the graph, for the error.
        model: the graph, with or without its functions.
        oldest: version of TensorRT.
        plugins: ops that a plugin replaces.

    Raises:
        InputError: it cannot; the sentence names the node, its op and the torch module that it comes from.
    """
    newest = max(limit for since, limit in OPSETS.items() if since <= oldest)
    if opset(model) > newest:
        raise InputError(
            f"the graph {name} has opset {opset(model)}, TensorRT {format_version(oldest)} reads up to {newest}; "
            f"export it at a lower opset, or name a newer version with --min-version"
        )
    bodies = {(function.domain, function.name): function.node for function in model.functions}
    constants = Constants(model)
    for node, module, inside in _calls(nodes(model.graph), bodies, plugins):
        reason = _reason(node, oldest, plugins)
        if not reason and not inside and node.op_type in RULES:
            reason = RULES[node.op_type](node, constants)
        if reason:
            where = f" of the module {module}" if module else ""
            label = node.name or next(filter(None, node.output), "")
            raise InputError(f"the graph {name}: {node.op_type} {label!r}{where}: {reason}")


def _calls(
    calls: Iterable[onnx.NodeProto],
    bodies: Mapping[tuple[str, str], Collection[onnx.NodeProto]],
    plugins: Set[str],
    module: str = "",
    inside: bool = False,
) -> Iterator[tuple[onnx.NodeProto, str, bool]]:
    """Yield each node of the inlined graph, the module of the node or its call, and True inside a function body.

    Args:
        calls: nodes of the graph, or of a function body.
        bodies: nodes of each function, by domain and name.
        plugins: ops whose calls stay.
        module: module of the call, inside its body.
        inside: True inside a function body.
    """
    for node in calls:
        path = module or module_path(node)
        body = bodies.get((node.domain, node.op_type))
        if body is None or node.op_type in plugins:
            yield node, path, inside
        else:
            yield from _calls(body, bodies, plugins, path, True)


def _reason(node: onnx.NodeProto, oldest: Version, plugins: Set[str]) -> str:
    """Return the reason why TensorRT `oldest` cannot read a node; empty if it can."""
    op, tensorrt = node.op_type, f"TensorRT {format_version(oldest)}"
    if node.domain not in ("", "ai.onnx") and op not in plugins:
        return f"{node.domain}::{op} has neither a body in the graph nor a plugin"
    if op in SIZED:
        return "the size of its output depends on values, and an engine's buffers are allocated before it runs"
    if op in REFUSED:
        return f"{tensorrt} does not read this op"
    if SINCE.get(op, oldest) > oldest:
        return f"{tensorrt} does not read this op, version {format_version(SINCE[op])} is the first; see --min-version"
    return ""


def _axes(node: onnx.NodeProto, constants: Constants) -> str:
    axes = len(node.input) > 1 and node.input[1]
    return f"its input {axes!r} must be constant" if axes and constants.get(node.input[1]) is None else ""


def _top_k(node: onnx.NodeProto, constants: Constants) -> str:
    k = constants.get(node.input[1])
    return f"k must be less than {MAX_K}, got {int(k.max())}" if k is not None and k.max() >= MAX_K else ""


def _layout(node: onnx.NodeProto, constants: Constants) -> str:
    batch_first = any(entry.name == "layout" and entry.i for entry in node.attribute)
    return "layout must be 0 (time first)" if batch_first else ""


RULES: dict[str, Callable[[onnx.NodeProto, Constants], str]] = {
    **dict.fromkeys(("Squeeze", "Unsqueeze", "CumSum", *(f"Reduce{name}" for name in SUMS)), _axes),
    "TopK": _top_k,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _layout),
}


def format_version(numbers: Version) -> str:
    """Return (10, 3) as 10.3."""
    return ".".join(map(str, numbers))
