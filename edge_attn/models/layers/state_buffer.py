"""A buffer of fixed length for the past states that a step reads, so that the size of the state does not change.

A state that grows cannot pass through an ONNX Loop in TensorRT, nor stay in a buffer of one size. The newest entry is
in the last slot and the others move up by one. A full buffer drops its oldest entry. `count` is the number of entries
ever appended, so it defines which slots are filled.

Shapes:
    buffer (batch, beam, slots, size), new (batch, beam, size), count (batch, beam, 1) int64
"""

from __future__ import annotations

import torch
from torch import Tensor


def append(buffer: Tensor, new: Tensor) -> Tensor:
    """Return the buffer with `new` as its newest entry."""
    return torch.cat([buffer[:, :, 1:], new[:, :, None]], 2)


def filled_slots(count: Tensor, buffer: Tensor) -> Tensor:
    """Return which slots contain an entry: (batch, beam, slots) bool."""
    slots = buffer.shape[2]
    return torch.arange(slots, device=buffer.device) >= slots - count


def flatten_beams(x: Tensor) -> Tensor:
    """Return x (batch, beam, ...) as (batch * beam, ...), because each hypothesis attends to its own buffer."""
    return x.flatten(0, 1)
