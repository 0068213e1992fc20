"""Choosing, by the golden data, which nodes leave fp32: all that may, and where that breaks the bounds, fewer.

A node's damage is how far it alone, lowered, moves the log-probabilities along the reference's tokens. Nodes that
leave no number behind (an overflow) are pinned to fp32 at once, the others the worst first, twice as many each round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx

from edge_attn.runtimes.optimize.calibration import Models
from edge_attn.runtimes.verification.report import Report

ROUNDS = 7
"""Tries; the last one pins 2 ** (ROUNDS - 2) nodes beside those that overflow."""


@dataclass(frozen=True)
class Lowering:
    """One way to compute in less than fp32."""

    lowerable: Callable[[onnx.ModelProto], list[str]]
    """The nodes of an fp32 graph that may be lowered, by the names of their first outputs."""
    lower: Callable[[str, onnx.ModelProto, Set[str]], onnx.ModelProto]
    """The graph of this name with some of them lowered."""


@dataclass(frozen=True)
class Chosen:
    """Graphs, and what was decided on the way to them."""

    models: Models
    lowered: dict[str, list[str]]
    pinned: dict[str, list[str]]
    """Nodes that may be lowered and stayed fp32, because the golden data says so."""
    report: Report


def choose(
    models: Models,
    lowering: Lowering,
    check: Callable[[Models], Report],
    measure: Callable[[Models], np.ndarray],
    say: Callable[[str], object],
) -> Chosen:
    """`models` lowered as far as `check` lets them; the last try, whose report does not hold, if none holds.

    `measure` gives the log-probabilities (rows, vocab) that graphs lead to.
    """
    may = {name: lowering.lowerable(model) for name, model in models.items()}
    ranked: list[tuple[float, str, str]] | None = None
    pinned: set[tuple[str, str]] = set()
    for turn in range(ROUNDS):
        lowered = {name: [node for node in may[name] if (name, node) not in pinned] for name in models}
        made = {name: lowering.lower(name, model, set(lowered[name])) for name, model in models.items()}
        report = check(made)
        spent = not any(lowered.values())
        if report.verdict == "holds" or turn == ROUNDS - 1 or spent:
            break
        if ranked is None:
            say("the bounds do not hold; measuring what each node alone does to them")
            ranked = rank(models, may, lowering, measure)
        broken = sum(not np.isfinite(damage) for damage, _, _ in ranked)
        pinned = {(graph, node) for _, graph, node in ranked[: broken + 2**turn - (broken > 0 and turn == 0)]}
        say(f"keeping {len(pinned)} of {len(ranked)} nodes in fp32")
    kept = {name: [node for node in may[name] if (name, node) in pinned] for name in models}
    return Chosen(made, lowered, kept, report)


def rank(
    models: Models, may: Mapping[str, Sequence[str]], lowering: Lowering, measure: Callable[[Models], np.ndarray]
) -> list[tuple[float, str, str]]:
    """(damage, graph, node) of every node that may be lowered, the worst first."""
    expected = measure(models)
    found = [
        (divergence(expected, measure({**models, name: lowering.lower(name, model, {node})})), name, node)
        for name, model in models.items()
        for node in may[name]
    ]
    return sorted(found, key=lambda entry: (-entry[0], *entry[1:]))


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """The mean divergence (Kullback and Leibler) of rows of log-probabilities; infinite where one is no number."""
    if not np.isfinite(found).all():
        return float("inf")
    p, q = expected.astype(np.float64), found.astype(np.float64)
    return float((np.exp(p) * (p - q)).sum(1).mean())
