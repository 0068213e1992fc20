"""The `seq2seq` family: a bidirectional recurrent encoder and a recurrent decoder with attention, or without.

Bahdanau et al. 2015 (https://arxiv.org/abs/1409.0473), `attend = "before"`:

    c_i = attention(s_{i-1}, h),   s_i = cell([y_{i-1}; c_i], s_{i-1}),   t_i = tanh(W [s_i; c_i; y_{i-1}])

Luong et al. 2015 (https://arxiv.org/abs/1508.04025), `attend = "after"`:

    s_i = cell(y_{i-1}, s_{i-1}),   c_i = attention(s_i, h),   t_i = tanh(W [s_i; c_i])

With input feeding t_{i-1} enters the cell too. p(y_i) = softmax(V t_i), where V may be the target embeddings.
Without attention c_i is the encoder's last state (Cho et al. 2014, https://arxiv.org/abs/1406.1078).

Axes: memory is (batch, ...), state is (batch, beam, ...); beams are query positions of the attention, so memory is
never repeated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_attn.config import Seq2SeqConfig
from edge_attn.models.attention import Memory
from edge_attn.models.recurrent import CELLS, STATES, RecurrentLayer
from edge_attn.registry import ATTENTIONS, resolve
from edge_attn.text import PAD

State = dict[str, Tensor]


class Encoder(nn.Module):
    """source (batch, src) int64, source_length (batch) int64
    -> values (batch, src, 2 hidden), mask (batch, src) bool, last states, each (batch, 2 hidden)."""

    def __init__(self, config: Seq2SeqConfig, vocab: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, config.embedding, padding_idx=PAD)
        sizes = [config.embedding] + [2 * config.encoder_hidden] * (config.encoder_layers - 1)
        self.layers = nn.ModuleList(RecurrentLayer(config.cell, size, config.encoder_hidden) for size in sizes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, source: Tensor, source_length: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        values, last = self.embedding(source), ()
        for layer in self.layers:
            values, last = layer(self.dropout(values), source_length)
        mask = torch.arange(source.shape[1], device=source.device)[None, :] < source_length[:, None]
        return values, mask, last


class Seq2Seq(nn.Module):
    """The whole model. `encode` once per sentence, then `step` by step; `forward` is the training pass."""

    def __init__(self, config: Seq2SeqConfig, source_vocab: int, target_vocab: int) -> None:
        super().__init__()
        self.config = config
        value, hidden = 2 * config.encoder_hidden, config.decoder_hidden
        features = config.embedding if config.tied_output else hidden
        self.encoder = Encoder(config, source_vocab)
        self.embedding = nn.Embedding(target_vocab, config.embedding, padding_idx=PAD)
        make = resolve("attention", ATTENTIONS, config.attention)
        self.attention = make(hidden, value, config.attention_size)
        size = config.embedding
        size += value if config.attend == "before" else 0
        size += features if config.input_feeding else 0
        sizes = [size] + [hidden] * (config.decoder_layers - 1)
        self.cells = nn.ModuleList(CELLS[config.cell](size, hidden) for size in sizes)
        self.bridge = nn.ModuleDict()
        if config.bridge == "linear":
            for name in self._cell_states():
                self.bridge[name.replace(".", "_")] = nn.Linear(value, hidden)
        combined = hidden + value + (config.embedding if config.attend == "before" else 0)
        self.combine = nn.Linear(combined, features)
        self.output = nn.Linear(features, target_vocab)
        if config.tied_output:
            nn.init.normal_(self.embedding.weight, std=config.embedding**-0.5)
            self.output.weight = self.embedding.weight
        self.dropout = nn.Dropout(config.dropout)

    def _cell_states(self) -> list[str]:
        return [f"{name}.{layer}" for layer in range(self.config.decoder_layers) for name in STATES[self.config.cell]]

    def encode(self, source: Tensor, source_length: Tensor) -> tuple[Memory, State]:
        """The memory of each sentence, and the state before its first target symbol (beam axis of one)."""
        values, mask, last = self.encoder(source, source_length)
        state = {}
        for name in self._cell_states():
            if self.config.bridge == "linear":
                end = last[STATES[self.config.cell].index(name.partition(".")[0])]
                state[name] = torch.tanh(self.bridge[name.replace(".", "_")](end))[:, None, :]
            else:
                state[name] = values.new_zeros(values.shape[0], 1, self.config.decoder_hidden)
        if self.config.input_feeding:
            state["feed"] = values.new_zeros(values.shape[0], 1, self.combine.out_features)
        return self.attention.prepare(values, mask, last[0]), state

    def step(self, embedded: Tensor, memory: Memory, state: State) -> tuple[Tensor, Tensor | None, State]:
        """embedded (batch, beam, embedding), the last symbols -> features t (batch, beam, features), weights, state."""
        names = STATES[self.config.cell]
        top = f"hidden.{self.config.decoder_layers - 1}"
        inputs, weights, context, following = [embedded], None, None, {}
        if self.config.attend == "before":
            context, weights = self.attention(state[top], memory)
            inputs.append(context)
        if self.config.input_feeding:
            inputs.append(state["feed"])
        x = torch.cat(inputs, -1)
        for layer, cell in enumerate(self.cells):
            new = cell(x if layer == 0 else self.dropout(x), tuple(state[f"{name}.{layer}"] for name in names))
            following.update({f"{name}.{layer}": tensor for name, tensor in zip(names, new, strict=True)})
            x = new[0]
        if context is None:
            context, weights = self.attention(x, memory)
        parts = [x, context, embedded] if self.config.attend == "before" else [x, context]
        features = torch.tanh(self.combine(torch.cat(parts, -1)))
        if self.config.input_feeding:
            following["feed"] = features
        return features, weights, following

    def logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.output(self.dropout(features))
        return logits

    def forward(self, source: Tensor, source_length: Tensor, target: Tensor) -> Tensor:
        """Features of each target position, teacher-forced: target (batch, tgt), beginning with bos
        -> (batch, tgt, features)."""
        memory, state = self.encode(source, source_length)
        embedded = self.dropout(self.embedding(target))
        features = []
        for i in range(target.shape[1]):
            new, _, state = self.step(embedded[:, i : i + 1], memory, state)
            features.append(new)
        return torch.cat(features, 1)
