"""What a hypothesis is ranked by: its log-probability, its length, and how much of the source it attended to."""

from __future__ import annotations

import numpy as np

from edge_attn.decoding.options import SearchConfig
from edge_attn.text.tokenizers import EOS

UNSEEN = float(np.finfo(np.float32).tiny)
"""What a source position that no token attended to counts as, so that its logarithm is a number."""


def length_penalty(length: int, config: SearchConfig) -> float:
    """What the log-probability of `length` symbols is divided by (Wu et al. 2016, equation 14, for wu)."""
    if config.length_penalty_kind == "none":
        return 1.0
    base = length if config.length_penalty_kind == "avg" else (5 + length) / 6
    return float(base**config.length_penalty)


def coverage_penalty(weights: np.ndarray, beta: float) -> float:
    """Wu et al. 2016 (https://arxiv.org/abs/1609.08144), equation 14, to be added to the score:

        cp(X; Y) = beta * sum_i log(min(sum_j p_ij, 1))

    Shapes:
        weights (tgt, src), without padding
    """
    attended = weights.sum(0, dtype=np.float64)
    return float(beta * np.log(np.clip(attended, UNSEEN, 1.0)).sum())


def diverse_order(totals: np.ndarray, ids: np.ndarray, config: SearchConfig) -> np.ndarray:
    """The continuations of each group, the best first, where group g ranks them by

        totals - lambda * (how many hypotheses of the groups before g go on with the same token)

    (Vijayakumar et al. 2018, https://arxiv.org/abs/1610.02424, equation 5 with the Hamming diversity of section 5.1).
    The penalty serves this choice alone: it is not carried on in the totals, so groups compare by their own scores.

    Shapes:
        totals, ids (batch * groups, continuations) -> (batch * groups, at most 2 * beam / groups)
    """
    groups, size = config.groups, config.beam // config.groups
    every = totals.reshape(-1, groups, totals.shape[1])
    tokens = ids.reshape(every.shape)
    rows = np.arange(len(every))[:, None]
    taken = np.zeros((len(every), int(ids.max()) + 1))
    orders = []
    for group in range(groups):
        keys = every[:, group] - config.diversity * taken[rows, tokens[:, group]]
        order = np.argsort(-keys, axis=1, kind="stable")[:, : 2 * size]
        orders.append(order)
        ends = tokens[rows, group, order] == EOS
        going = order[rows, np.argsort(ends, axis=1, kind="stable")[:, :size]]
        chosen = tokens[rows, group, going]
        alive = (every[rows, group, going] > -np.inf) & (chosen != EOS)
        np.add.at(taken, (rows, chosen), alive)
    return np.stack(orders, 1).reshape(len(totals), -1)
