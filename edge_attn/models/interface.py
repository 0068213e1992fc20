"""Interface of encoder-decoder models: export, recording, the reference and folding use nothing else of a model."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from torch import Tensor

Memory: TypeAlias = dict[str, Tensor]
"""Tensors of a source sentence by name, (batch, ...). The decoder reads them at every step."""
State: TypeAlias = dict[str, Tensor]
"""Tensors that one step passes to the next, by name, (batch, beam, ...)."""


class EncoderDecoder(Protocol):
    """A torch module that encodes a source once and then predicts the target token by token.

    A module that has these members is an EncoderDecoder; it need not inherit from this class. The names of memory and
    state tensors are its own, and are the same for every source.
    """

    source_vocabulary: int
    """Number of source token ids."""
    target_vocabulary: int
    """Number of target token ids."""

    def encode(self, source: Tensor, source_length: Tensor) -> tuple[Memory, State]:
        """Return the memory of each source, and the state before its first target token.

        Args:
            source: token ids, (batch, src) int64, padded.
            source_length: number of tokens of each source, (batch) int64.

        Returns:
            Memory (batch, ...) and state (batch, 1, ...).
        """

    def step(self, tokens: Tensor, memory: Memory, state: State) -> tuple[Tensor, Tensor | None, State]:
        """Return logits, attention weights and the next state after each hypothesis' last token.

        Args:
            tokens: last target tokens, (batch, beam) int64.
            memory: memory of each source, (batch, ...).
            state: state of each hypothesis, (batch, beam, ...).

        Returns:
            Logits (batch, beam, vocab), attention weights (batch, beam, src) or None, state (batch, beam, ...).
        """
