"""Which nodes leave fp32, by the golden data: every node that can be converted, or fewer where that breaks the bounds.

The sensitivity of a node is the KL divergence of the log-probabilities along the reference's tokens when it alone is
converted. Nodes that overflow are pinned to fp32 at once, then the most sensitive ones, twice as many each round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx

from edge_attn.progress import track
from edge_attn.runtimes.optimize.calibration import Models
from edge_attn.runtimes.verification.report import Report

ROUNDS = 7
"""Maximum number of rounds; the last one pins 2 ** (ROUNDS - 2) nodes beside those that overflow."""


@dataclass(frozen=True)
class Conversion:
    """One way to compute in less than fp32."""

    convertible_nodes: Callable[[onnx.ModelProto], list[str]]
    """Return the nodes of an fp32 graph that can be converted, by the names of their first outputs."""
    convert: Callable[[str, onnx.ModelProto, Set[str]], onnx.ModelProto]
    """Return the graph of this name with these nodes converted."""


@dataclass(frozen=True)
class PrecisionPlan:
    """Converted graphs, and the decision about each node."""

    models: Models
    converted: dict[str, list[str]]
    """Converted nodes by graph."""
    pinned: dict[str, list[str]]
    """Nodes by graph that can be converted and stay fp32, by the golden data."""
    report: Report


def plan_precision(
    models: Models,
    conversion: Conversion,
    check: Callable[[Models], Report],
    measure: Callable[[Models], np.ndarray],
    log: Callable[[str], object],
) -> PrecisionPlan:
    """Convert as many nodes as `check` accepts; if it accepts none, return the last round with its report.

    Args:
        models: fp32 graphs by name.
        conversion: the conversion.
        check: verifies graphs.
        measure: runs graphs and returns log-probabilities (rows, vocab).
        log: takes one line of progress.
    """
    convertible = {name: conversion.convertible_nodes(model) for name, model in models.items()}
    ranking: list[tuple[float, str, str]] | None = None
    pinned: set[tuple[str, str]] = set()
    for turn in range(ROUNDS):
        nodes = {name: [node for node in convertible[name] if (name, node) not in pinned] for name in models}
        converted = {name: conversion.convert(name, model, set(nodes[name])) for name, model in models.items()}
        report = check(converted)
        if report.verdict == "holds" or turn == ROUNDS - 1 or not any(nodes.values()):
            break
        if ranking is None:
            log("the bounds do not hold; measuring the sensitivity of each node")
            ranking = rank_nodes(models, convertible, conversion, measure)
        overflowing = sum(not np.isfinite(sensitivity) for sensitivity, _, _ in ranking)
        count = overflowing + 2**turn
        if overflowing and turn == 0:
            count = overflowing  # they alone may be the cause
        pinned = {(graph, node) for _, graph, node in ranking[:count]}
        log(f"keeping {len(pinned)} of {len(ranking)} nodes in fp32")
    pinned_by_graph = {name: [node for node in convertible[name] if (name, node) in pinned] for name in models}
    return PrecisionPlan(converted, nodes, pinned_by_graph, report)


def rank_nodes(
    models: Models,
    convertible: Mapping[str, Sequence[str]],
    conversion: Conversion,
    measure: Callable[[Models], np.ndarray],
) -> list[tuple[float, str, str]]:
    """Return (sensitivity, graph, node) of every convertible node, the most sensitive first.

    Args:
        models: fp32 graphs by name.
        convertible: nodes by graph.
        conversion: the conversion.
        measure: runs graphs and returns log-probabilities (rows, vocab).
    """
    expected = measure(models)
    every = [(name, model, node) for name, model in models.items() for node in convertible[name]]
    sensitivities = [
        (kl_divergence(expected, measure({**models, name: conversion.convert(name, model, {node})})), name, node)
        for name, model, node in track(every, len(every), lambda _: 1, " nodes")
    ]
    return sorted(sensitivities, key=lambda entry: (-entry[0], *entry[1:]))


def kl_divergence(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the mean KL divergence between rows of log-probabilities; infinite where a value is not finite.

    Shapes:
        expected (rows, vocab), actual (rows, vocab)
    """
    if not np.isfinite(actual).all():
        return float("inf")
    p, q = expected.astype(np.float64), actual.astype(np.float64)
    return float((np.exp(p) * (p - q)).sum(1).mean())
