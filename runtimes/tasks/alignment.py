"""Alignments from attention weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass


def pharaoh(alignment: np.ndarray | None, tokens: int) -> str:
    """Of weights (tokens or more, source tokens and their end symbol); empty without weights or source tokens."""
    if alignment is None or alignment.shape[1] < 2:
        return ""
    return " ".join(f"{i}-{j}" for j, i in enumerate(alignment[:tokens, :-1].argmax(1)))
