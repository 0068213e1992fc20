"""Word alignments from attention weights."""

from __future__ import annotations

import numpy as np

from edge_attn.decoding.decoder import has_alignment
from edge_attn.errors import UsageError
from edge_attn.spec import Runtime


def pharaoh(alignment: np.ndarray | None, tokens: int) -> str:
    """Return `i-j` pairs: each target token j with the source token i that has its largest weight, without end symbols.

    Empty without weights or source tokens.

    Args:
        alignment: attention weights (at least `tokens`, source tokens and their end symbol).
        tokens: number of target tokens.
    """
    if alignment is None or alignment.shape[1] < 2:
        return ""
    return " ".join(f"{i}-{j}" for j, i in enumerate(alignment[:tokens, :-1].argmax(1)))


def check_attention(runtime: Runtime, feature: str) -> None:
    """Check that the model has attention weights, which `feature` reads.

    Raises:
        UsageError: it has none.
    """
    if not has_alignment(runtime.graphs):
        raise UsageError(f"{feature} needs attention weights, and this model has no attention")
