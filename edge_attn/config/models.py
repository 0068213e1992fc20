"""Model configurations: one frozen dataclass per family. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_attn.config.validation import at_least, at_most, one_of
from edge_attn.errors import ConfigError
from edge_attn.registry import ATTENTIONS, CELLS

WITHOUT_ENERGY = ("multi-head", "none", "pooling")
"""Attentions without one energy for each source position."""
WITH_CELL_STATE = ("lstm", "lstmn")
"""Cells with a cell state beside the hidden state."""
SIZE, LAYERS, HEADS, TAPE = 1 << 20, 64, 1 << 12, 1 << 12
LIMITS = {
    **dict.fromkeys(("embedding", "encoder_hidden", "decoder_hidden", "attention_size", "positions"), SIZE),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS),
    **{"heads": HEADS, "tape": TAPE},
}
"""Maximum of each size. A model within them may still be too large for a machine, which training checks."""


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Recurrent encoder-decoder; see edge_attn/models/seq2seq.py for the equations."""

    family: str = "seq2seq"
    """Model family."""
    cell: str = "gru"
    """Recurrent cell of the decoder: gru, lstm or lstmn (Cheng et al. 2016)."""
    encoder_cell: str = ""
    """Recurrent cell of the encoder. Empty: that of the decoder."""
    embedding: int = 256
    """Size of the source and target embeddings."""
    encoder_hidden: int = 256
    """Hidden size of one direction of the bidirectional encoder."""
    encoder_layers: int = 1
    """Number of encoder layers."""
    decoder_hidden: int = 512
    """Hidden size of the decoder."""
    decoder_layers: int = 1
    """Number of decoder layers."""
    attention: str = "additive"
    """Attention score, as additive, dot or general (docs/attention.md lists all). none: a model without attention."""
    attention_size: int = 256
    """Size of the hidden layer of the energy for additive attention, or of all heads together for multi-head."""
    normalizer: str = field(default="softmax", metadata={"formerly": "normaliser"})  # codespell:ignore normaliser
    """Map from energies to weights: softmax, or sparsemax (Martins and Astudillo 2016), whose weights can be 0."""
    focus: str = "global"
    """Attended positions. global: all; local-m, local-p: a window (Luong et al. 2015); hard: one (Xu et al. 2015)."""
    window: int = 0
    """Window D of local-m and local-p: attended source positions on either side of the center."""
    hard_training: str = "straight-through"
    """Training of focus = "hard": straight-through, or reinforce (rewarded samples with a moving baseline)."""
    coverage: bool = False
    """Use the sum of past weights as a feature of the energy (Tu et al. 2016; See et al. 2017)."""
    heads: int = 4
    """Number of heads of multi-head attention."""
    positions: int = 100
    """Maximum number of source positions of location attention. Later positions have weight 0."""
    tape: int = 64
    """Maximum number of past states that an lstmn decoder attends to."""
    attend: str = "before"
    """Order in a step. before: attention, then cell (Bahdanau et al. 2015); after: the reverse (Luong et al. 2015)."""
    input_feeding: bool = False
    """Use the attentional vector as an input of the next step's cell (Luong et al. 2015, section 3.3)."""
    bridge: str = "linear"
    """Initial decoder state. none: zeros; linear: tanh of a projection of the last encoder states."""
    dropout: float = 0.0
    """Dropout probability in training, in [0, 1)."""
    tied_output: bool = False
    """Share the weights of the output layer with the target embeddings (Press and Wolf 2017)."""

    @property
    def attention_kind(self) -> str:
        """Return the attention with what changes it, for people: `local-m general`, `sparsemax additive`."""
        changes = [
            self.focus if self.focus != "global" else "",
            self.normalizer if self.normalizer != "softmax" else "",
        ]
        return " ".join([*filter(None, changes), *(["coverage"] if self.coverage else []), self.attention])

    def __post_init__(self) -> None:
        one_of("family", self.family, ("seq2seq",))
        one_of("cell", self.cell, tuple(CELLS))
        one_of("encoder_cell", self.encoder_cell, ("", *CELLS))
        one_of("attend", self.attend, ("before", "after"))
        one_of("bridge", self.bridge, ("none", "linear"))
        one_of("attention", self.attention, tuple(ATTENTIONS))
        one_of("normalizer", self.normalizer, ("softmax", "sparsemax"))
        one_of("focus", self.focus, ("global", "local-m", "local-p", "hard"))
        one_of("hard_training", self.hard_training, ("straight-through", "reinforce"))
        for name, maximum in LIMITS.items():
            at_least(name, getattr(self, name), 1)
            at_most(name, getattr(self, name), maximum)
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.focus.startswith("local"):
            at_least("window", self.window, 1)
            at_most("window", self.window, SIZE)
        elif self.window:
            raise ConfigError(
                f"focus = {self.focus!r} has no window, got window = {self.window}; use focus = 'local-m' or 'local-p'"
            )
        if self.hard_training != "straight-through" and self.focus != "hard":
            raise ConfigError(f"hard_training = {self.hard_training!r} needs focus = 'hard', got {self.focus!r}")
        if self.coverage and self.focus != "global":
            raise ConfigError(f"coverage needs focus = 'global', got {self.focus!r}")
        if self.normalizer != "softmax" and self.focus == "hard":
            raise ConfigError("focus = 'hard' takes the largest energy and supports only normalizer = 'softmax'")
        same_size = self.attention in ("dot", "scaled") or self.attention.startswith("keras-")
        if same_size and self.decoder_hidden != 2 * self.encoder_hidden:
            raise ConfigError(
                f"attention = {self.attention!r} needs decoder_hidden = 2 * encoder_hidden, got "
                f"{self.decoder_hidden} and {self.encoder_hidden}; use 'general' for other sizes"
            )
        if self.attention == "multi-head" and self.attention_size % self.heads:
            raise ConfigError(
                f"heads must divide attention_size, got {self.heads} heads and attention_size {self.attention_size}"
            )
        if self.normalizer != "softmax" and self.attention == "none":
            raise ConfigError(f"normalizer = {self.normalizer!r} needs an attention, got attention = 'none'")
        wrapper = "coverage" if self.coverage else self.focus
        if wrapper != "global" and self.attention in WITHOUT_ENERGY:
            raise ConfigError(
                f"attention = {self.attention!r} has no energy for each source position, which {wrapper} needs; "
                f"choose another attention"
            )
        encoder_cell = self.encoder_cell or self.cell
        if self.bridge == "linear" and self.cell in WITH_CELL_STATE and encoder_cell not in WITH_CELL_STATE:
            raise ConfigError(
                f"cell = {self.cell!r} starts from the encoder's cell state, which encoder_cell = {encoder_cell!r} "
                f"does not have; use another, or bridge = 'none'"
            )
