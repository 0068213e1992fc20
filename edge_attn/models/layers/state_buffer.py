"""A tape of fixed length: what a step keeps of the steps before it, as a state whose size does not change.

A state that grows can be carried neither by an ONNX Loop in TensorRT nor in a buffer of one size. Here the newest entry
stands last and the others move up by one; when the tape is full the oldest is forgotten. `count` says how many entries
were ever made, and so which slots are real.

Shapes:
    tape (batch, beam, slots, size), new (batch, beam, size), count (batch, beam, 1) int64
"""

from __future__ import annotations

import torch
from torch import Tensor


def append(tape: Tensor, new: Tensor) -> Tensor:
    """The tape with `new` as its newest entry."""
    return torch.cat([tape[:, :, 1:], new[:, :, None]], 2)


def real(count: Tensor, tape: Tensor) -> Tensor:
    """Which slots hold an entry: (batch, beam, slots) bool."""
    slots = tape.shape[2]
    return torch.arange(slots, device=tape.device) >= slots - count


def rows(x: Tensor) -> Tensor:
    """(batch, beam, ...) as (batch * beam, ...): to an attention over a tape each hypothesis is a row of its own."""
    return x.flatten(0, 1)
