"""Scores that rank hypotheses: length penalty, coverage penalty and diversity."""

from __future__ import annotations

import numpy as np

from edge_attn.decoding.options import SearchConfig
from edge_attn.text.tokenizers import EOS

UNSEEN = float(np.finfo(np.float32).tiny)
"""Attention mass of a source position that no token attended to, so that its logarithm is finite."""


def length_penalty(length: int, config: SearchConfig) -> float:
    """Return the divisor of the log-probability of `length` symbols (Wu et al. 2016, equation 14, for wu)."""
    if config.length_penalty_kind == "none":
        return 1.0
    base = length if config.length_penalty_kind == "avg" else (5 + length) / 6
    return float(base**config.length_penalty)


def coverage_penalty(weights: np.ndarray, beta: float) -> float:
    """Return the coverage penalty, which is added to the score.

    Wu et al. 2016 (https://arxiv.org/abs/1609.08144), equation 14:

        cp(X; Y) = beta * sum_i log(min(sum_j p_ij, 1))

    Shapes:
        weights (tgt, src), without padding
    """
    attended = weights.sum(0, dtype=np.float64)
    return float(beta * np.log(np.clip(attended, UNSEEN, 1.0)).sum())


def diverse_order(scores: np.ndarray, ids: np.ndarray, config: SearchConfig) -> np.ndarray:
    """Rank the continuations of each group, best first.

    Group g ranks them by

        scores - lambda * (number of hypotheses of the groups before g that continue with the same token)

    (Vijayakumar et al. 2018, https://arxiv.org/abs/1610.02424, equation 5 with the Hamming diversity of section 5.1).
    The penalty affects this ranking alone. It is not added to the scores, so groups are compared by their own scores.

    Shapes:
        scores, ids (batch * groups, continuations) -> (batch * groups, at most 2 * beam / groups)
    """
    groups, size = config.groups, config.beam // config.groups
    grouped = scores.reshape(-1, groups, scores.shape[1])  # (batch, groups, continuations)
    tokens = ids.reshape(grouped.shape)
    rows = np.arange(len(grouped))[:, None]
    counts = np.zeros((len(grouped), int(ids.max()) + 1))
    orders = []
    for group in range(groups):
        keys = grouped[:, group] - config.diversity * counts[rows, tokens[:, group]]
        order = np.argsort(-keys, axis=1, kind="stable")[:, : 2 * size]
        orders.append(order)
        ends = tokens[rows, group, order] == EOS
        survivors = order[rows, np.argsort(ends, axis=1, kind="stable")[:, :size]]
        selected = tokens[rows, group, survivors]
        alive = (grouped[rows, group, survivors] > -np.inf) & (selected != EOS)
        np.add.at(counts, (rows, selected), alive)
    return np.stack(orders, 1).reshape(len(scores), -1)
