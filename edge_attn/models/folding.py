"""A model as it is deployed: what its linear maps make of a sentence is made once per sentence, not once per step.

A context is a weighted sum of values, so W c = sum_j a_j (W h_j): the encoder's graph gives W h_j in place of h_j, and
the step multiplies no context with any weights. The same numbers, but for rounding; of the embedded model's weights a
step reads 28 % less.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_attn.models.layers.attention import Memory, State
from edge_attn.models.layers.recurrent import Cell
from edge_attn.models.seq2seq import Seq2Seq


class FoldedSeq2Seq(nn.Module):
    """`encode` and `step` of `model`, whose memory holds the values as the step's two maps of the context make them."""

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.model = model
        config, value, hidden = model.config, 2 * model.config.encoder_hidden, model.config.decoder_hidden
        cell = model.cells[0]
        assert isinstance(cell, Cell)
        before = config.attend == "before"
        w, self.cell_bias = (tensor.detach() for tensor in cell.projection())
        sizes = [config.embedding, value if before else 0, w.shape[1] - config.embedding - (value if before else 0)]
        cell_embedded, cell_context, cell_feed = torch.split(w, sizes, 1)
        sizes = [hidden, value, model.combine.in_features - hidden - value]
        combine_hidden, combine_context, combine_embedded = torch.split(model.combine.weight.detach(), sizes, 1)
        self.rows = w.shape[0] if before else 0
        for name, tensor in (
            ("context", torch.cat([cell_context, combine_context]) if before else combine_context),
            ("cell_embedded", cell_embedded),
            ("cell_feed", cell_feed),
            ("combine_hidden", combine_hidden),
            ("combine_embedded", combine_embedded),
        ):
            self.register_buffer(name, tensor.clone(memory_format=torch.contiguous_format), persistent=False)

    def encode(self, source: Tensor, source_length: Tensor) -> tuple[Memory, State]:
        memory, state = self.model.encode(source, source_length)
        folded = self.model.attention.project_values(memory, self.get_buffer("context"))
        assert folded is not None
        return folded, state

    def step(self, embedded: Tensor, memory: Memory, state: State) -> tuple[Tensor, Tensor | None, State]:
        return self.model.step(embedded, memory, state, self)

    def first_projection(self, embedded: Tensor, context: Tensor | None, feed: Tensor | None) -> Tensor:
        made = nn.functional.linear(embedded, self.get_buffer("cell_embedded"), self.cell_bias)
        if context is not None:
            made = made + context[..., : self.rows]
        if feed is not None:
            made = made + nn.functional.linear(feed, self.get_buffer("cell_feed"))
        return made

    def combined(self, hidden: Tensor, context: Tensor, embedded: Tensor | None) -> Tensor:
        made = nn.functional.linear(hidden, self.get_buffer("combine_hidden"), self.model.combine.bias)
        made = made + context[..., self.rows :]
        if embedded is not None:
            made = made + nn.functional.linear(embedded, self.get_buffer("combine_embedded"))
        return made


def fold_for_inference(model: Seq2Seq) -> FoldedSeq2Seq | Seq2Seq:
    """The model folded, or as it is where its attention cannot be."""
    source, length = torch.ones(1, 1, dtype=torch.long), torch.ones(1, dtype=torch.long)
    size = 2 * model.config.encoder_hidden
    with torch.no_grad():
        memory, _ = model.encode(source, length)
        weight = next(model.parameters()).new_zeros(1, size)
        return model if model.attention.project_values(memory, weight) is None else FoldedSeq2Seq(model)
