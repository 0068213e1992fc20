"""The `seq2seq` family: a bidirectional recurrent encoder and a recurrent decoder, with or without attention.

Bahdanau et al. 2015 (https://arxiv.org/abs/1409.0473), `attend = "before"`:

    c_i = attention(s_{i-1}, h),   s_i = cell([y_{i-1}; c_i], s_{i-1}),   t_i = tanh(W [s_i; c_i; y_{i-1}])

Luong et al. 2015 (https://arxiv.org/abs/1508.04025), `attend = "after"`:

    s_i = cell(y_{i-1}, s_{i-1}),   c_i = attention(s_i, h),   t_i = tanh(W [s_i; c_i])

With input feeding t_{i-1} is an input of the cell too. p(y_i) = softmax(V t_i), where V may be the target embeddings.
Without attention c_i is the encoder's last state (Cho et al. 2014, https://arxiv.org/abs/1406.1078).

The state contains, by name, each tensor that a step passes to the next: of cells, input feeding and some attentions.

Axes: memory is (batch, ...), state is (batch, beam, ...). Beams are query positions of the attention, so memory is
never repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.models.interface import Memory, State
from edge_attn.models.layers.attention import Attention, AttentionOptions
from edge_attn.models.layers.recurrent import Cell
from edge_attn.registry import ATTENTION_WRAPPERS, ATTENTIONS, CELLS, LAYERS, resolve
from edge_attn.text.tokenizers import PAD

ATTENTION_STATE = "attention."
"""Prefix of the state tensors of the attention."""


class Encoder(nn.Module):
    """Bidirectional recurrent encoder.

    Shapes:
        source (batch, src) int64, source_length (batch) int64
        -> values (batch, src, 2 hidden), mask (batch, src) bool, last states, each (batch, 2 hidden)
    """

    def __init__(self, config: Seq2SeqConfig, vocab: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, config.embedding, padding_idx=PAD)
        sizes = [config.embedding] + [2 * config.encoder_hidden] * (config.encoder_layers - 1)
        cell = config.encoder_cell or config.cell
        layer = resolve("cell", LAYERS, cell)
        self.layers = nn.ModuleList(layer(cell, size, config.encoder_hidden) for size in sizes)
        self.final_states: tuple[str, ...] = resolve("cell", CELLS, cell).final_states
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, source: Tensor, source_length: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Encode a padded batch of sources."""
        values, last = self.embedding(source), ()
        for layer in self.layers:
            values, last = layer(self.dropout(values), source_length)
        mask = torch.arange(source.shape[1], device=source.device)[None, :] < source_length[:, None]
        return values, mask, last


class StepProjections(Protocol):
    """The two linear layers of a step that take the context vector as input."""

    def first_projection(self, embedded: Tensor, context: Tensor | None, feed: Tensor | None) -> Tensor:
        """Return the input of the first cell, (batch, beam, rows)."""

    def combined(self, hidden: Tensor, context: Tensor, embedded: Tensor | None) -> Tensor:
        """Return the argument of the attentional vector's tanh, (batch, beam, features)."""


@dataclass(frozen=True)
class TeacherForcedOutput:
    """Output of a training pass along the reference targets."""

    features: Tensor
    """t (batch, tgt, features)."""
    choices: Tensor | None
    """Log-probability of the sampled positions of a hard attention, (batch, tgt), with hard_training = reinforce."""


class Seq2Seq(nn.Module):
    """The whole model, an EncoderDecoder. `forward` is the training pass."""

    def __init__(self, config: Seq2SeqConfig, source_vocab: int, target_vocab: int) -> None:
        super().__init__()
        self.config = config
        self.source_vocabulary, self.target_vocabulary = source_vocab, target_vocab
        value, hidden = 2 * config.encoder_hidden, config.decoder_hidden
        features = config.embedding if config.tied_output else hidden
        self.encoder = Encoder(config, source_vocab)
        self.embedding = nn.Embedding(target_vocab, config.embedding, padding_idx=PAD)
        self.attention = make_attention(config, hidden, value)
        size = config.embedding
        size += value if config.attend == "before" else 0
        size += features if config.input_feeding else 0
        sizes = [size] + [hidden] * (config.decoder_layers - 1)
        cell = resolve("cell", CELLS, config.cell)
        self.cells = nn.ModuleList(cell.from_sizes(size, hidden, config.tape) for size in sizes)
        self.bridge = nn.ModuleDict()
        if config.bridge == "linear":
            for layer in range(config.decoder_layers):
                self.bridge.update({f"{name}_{layer}": nn.Linear(value, hidden) for name in cell.final_states})
        combined = hidden + value + (config.embedding if config.attend == "before" else 0)
        self.combine = nn.Linear(combined, features)
        self.output = nn.Linear(features, target_vocab)
        if config.tied_output:
            nn.init.normal_(self.embedding.weight, std=config.embedding**-0.5)
            self.output.weight = self.embedding.weight
        self.dropout = nn.Dropout(config.dropout)

    def encode(self, source: Tensor, source_length: Tensor) -> tuple[Memory, State]:
        """Return the memory of each sentence, and the state before its first target token (beam axis of one)."""
        values, mask, last = self.encoder(source, source_length)
        memory = self.attention.prepare(values, mask, last[0])
        state = {f"{ATTENTION_STATE}{name}": tensor for name, tensor in self.attention.start(memory).items()}
        for layer, cell in enumerate(self.cells):
            assert isinstance(cell, Cell)
            zeros = values.new_zeros(values.shape[0], 1, self.config.decoder_hidden)
            initial = dict.fromkeys(cell.final_states, zeros)
            if self.config.bridge == "linear":
                for name in initial:
                    end = last[self.encoder.final_states.index(name)]
                    initial[name] = torch.tanh(self.bridge[f"{name}_{layer}"](end))[:, None, :]
            state.update({f"{name}.{layer}": tensor for name, tensor in cell.start(initial).items()})
        if self.config.input_feeding:
            state["feed"] = values.new_zeros(values.shape[0], 1, self.combine.out_features)
        return memory, state

    def step(
        self, tokens: Tensor, memory: Memory, state: State, projections: StepProjections | None = None
    ) -> tuple[Tensor, Tensor | None, State]:
        """Return logits, attention weights and the next state; see EncoderDecoder.step.

        Args:
            tokens: last target tokens, (batch, beam) int64.
            memory: memory of each source.
            state: state of each hypothesis.
            projections: the linear layers that take the context; by default the model's own.
        """
        features, weights, following = self.decode(self.embedding(tokens), memory, state, projections)
        logits = self.logits(features.flatten(0, 1)).reshape(*tokens.shape, -1)  # over two axes: one Gemm
        return logits, weights, following

    def decode(
        self, embedded: Tensor, memory: Memory, state: State, projections: StepProjections | None = None
    ) -> tuple[Tensor, Tensor | None, State]:
        """Return features t (batch, beam, features), attention weights and the next state.

        Args:
            embedded: embeddings of the last target tokens, (batch, beam, embedding).
            memory: memory of each source.
            state: state of each hypothesis.
            projections: the linear layers that take the context; by default the model's own.
        """
        projections = projections or self
        following: State = {}
        attention_state = _with_prefix(state, ATTENTION_STATE)

        def attend(query: Tensor) -> tuple[Tensor, Tensor | None]:
            context, weights, new = self.attention.step(query, memory, attention_state)
            following.update({f"{ATTENTION_STATE}{name}": tensor for name, tensor in new.items()})
            return context, weights

        before = self.config.attend == "before"
        if before:
            top = self.config.decoder_layers - 1
            context, weights = attend(self.cells[top].query(_layer_state(state, top)))  # type: ignore[operator]
        x = projections.first_projection(embedded, context if before else None, state.get("feed"))
        for layer, cell in enumerate(self.cells):
            assert isinstance(cell, Cell)
            if layer:
                x = nn.functional.linear(self.dropout(x), *cell.projection())
            x, new = cell(x, _layer_state(state, layer))
            following.update({f"{name}.{layer}": tensor for name, tensor in new.items()})
        if not before:
            context, weights = attend(x)
        features = torch.tanh(projections.combined(x, context, embedded if before else None))
        if self.config.input_feeding:
            following["feed"] = features
        return features, weights, following

    def first_projection(self, embedded: Tensor, context: Tensor | None, feed: Tensor | None) -> Tensor:
        """Return the input of the first cell; see StepProjections."""
        inputs = [part for part in (embedded, context, feed) if part is not None]
        return nn.functional.linear(torch.cat(inputs, -1), *self.cells[0].projection())  # type: ignore[operator]

    def combined(self, hidden: Tensor, context: Tensor, embedded: Tensor | None) -> Tensor:
        """Return the argument of the attentional vector's tanh; see StepProjections."""
        parts = [part for part in (hidden, context, embedded) if part is not None]
        combined: Tensor = self.combine(torch.cat(parts, -1))
        return combined

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (..., vocab) of features (..., features)."""
        logits: Tensor = self.output(self.dropout(features))
        return logits

    def forward_teacher_forced(self, source: Tensor, source_length: Tensor, target: Tensor) -> TeacherForcedOutput:
        """Run the training pass along target (batch, tgt), which begins with bos."""
        memory, state = self.encode(source, source_length)
        embedded = self.dropout(self.embedding(target))
        features, choices = [], []
        for i in range(target.shape[1]):
            new, _, state = self.decode(embedded[:, i : i + 1], memory, state)
            features.append(new)
            if f"{ATTENTION_STATE}choice" in state:
                choices.append(state.pop(f"{ATTENTION_STATE}choice")[..., 0])
        return TeacherForcedOutput(torch.cat(features, 1), torch.cat(choices, 1) if choices else None)

    def forward(self, source: Tensor, source_length: Tensor, target: Tensor) -> Tensor:
        """Return the features (batch, tgt, features) of the training pass."""
        return self.forward_teacher_forced(source, source_length, target).features


def make_attention(config: Seq2SeqConfig, query_size: int, value_size: int) -> Attention:
    """Build the attention that `config` describes.

    Raises:
        ConfigError: the kind of attention cannot do what the configuration requires.
    """
    options = AttentionOptions(
        query_size,
        value_size,
        config.attention_size,
        config.normalizer,
        config.heads,
        config.positions,
        config.window,
        config.hard_training,
    )
    kind: type[Attention] = resolve("attention", ATTENTIONS, config.attention)
    attention = kind.from_options(options)
    attention.normalizer = options.normalizer
    wrapper = "coverage" if config.coverage else config.focus
    if wrapper == "global":
        return attention
    wrapped: Attention = resolve("focus", ATTENTION_WRAPPERS, wrapper).wrap(attention, options)
    return wrapped


def _with_prefix(state: State, prefix: str) -> State:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _layer_state(state: State, layer: int) -> State:
    """Return the state of the decoder's cell in that layer."""
    return {name.rpartition(".")[0]: tensor for name, tensor in state.items() if name.endswith(f".{layer}")}
