"""Model configurations: one frozen dataclass a family. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_attn.config.validation import at_least, one_of
from edge_attn.errors import ConfigError
from edge_attn.registry import ATTENTIONS, CELLS


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Recurrent encoder-decoder; see edge_attn/models/seq2seq.py for the equations."""

    family: str = "seq2seq"
    cell: str = "gru"
    """gru, lstm or lstmn (Cheng et al. 2016), in the decoder, and in the encoder unless `encoder_cell` says another."""
    encoder_cell: str = ""
    embedding: int = 256
    encoder_hidden: int = 256
    """Per direction: the encoder is bidirectional."""
    encoder_layers: int = 1
    decoder_hidden: int = 512
    decoder_layers: int = 1
    attention: str = "additive"
    """A row of ATTENTIONS; none is the model that attention was invented against."""
    attention_size: int = 256
    """Size of the energy's hidden layer, for additive attention; of all heads together, for multi-head."""
    normalizer: str = field(default="softmax", metadata={"formerly": "normaliser"})
    """From energies to weights: softmax, or sparsemax (Martins and Astudillo 2016), which gives exact zeros."""
    focus: str = "global"
    """global; local-m or local-p: a window (Luong et al. 2015, section 3.2); hard: one position (Xu et al. 2015)."""
    window: int = 0
    """D of local-m and local-p: source positions on either side of the centre that take part."""
    hard_training: str = "straight-through"
    """Of focus = "hard": straight-through, or reinforce (rewarded samples, with a moving baseline)."""
    coverage: bool = False
    """What was attended to so far is a feature of the energy (Tu et al. 2016; See et al. 2017)."""
    heads: int = 4
    """Of multi-head attention."""
    positions: int = 100
    """Source positions that location attention knows; later ones take no part."""
    tape: int = 64
    """Past states that an lstmn decoder remembers."""
    attend: str = "before"
    """before: attend, then the cell (Bahdanau et al. 2015); after: the cell, then attend (Luong et al. 2015)."""
    input_feeding: bool = False
    """The attentional vector enters the next step's cell (Luong et al. 2015, section 3.3)."""
    bridge: str = "linear"
    """none: the decoder starts from zeros; linear: from tanh of a projection of the encoder's last states."""
    dropout: float = 0.0
    tied_output: bool = False
    """The output layer's weights are the target embeddings (Press and Wolf 2017)."""

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
        for name in (
            "embedding",
            "encoder_hidden",
            "encoder_layers",
            "decoder_hidden",
            "decoder_layers",
            "attention_size",
            "heads",
            "positions",
            "tape",
        ):
            at_least(name, getattr(self, name), 1)
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.focus.startswith("local"):
            at_least("window", self.window, 1)
        elif self.window:
            raise ConfigError(
                f"focus = {self.focus!r} has no window, got window = {self.window}; it belongs to local-m and local-p"
            )
        if self.hard_training != "straight-through" and self.focus != "hard":
            raise ConfigError(f"hard_training = {self.hard_training!r} needs focus = 'hard', got {self.focus!r}")
        if self.coverage and self.focus != "global":
            raise ConfigError(f"coverage needs focus = 'global', got {self.focus!r}")
        if self.normalizer != "softmax" and self.focus == "hard":
            raise ConfigError("focus = 'hard' takes the largest energy: it has no normalizer but 'softmax'")
        if self.attention in ("dot", "scaled") and self.decoder_hidden != 2 * self.encoder_hidden:
            raise ConfigError(
                f"attention = {self.attention!r} needs decoder_hidden = 2 * encoder_hidden, got "
                f"{self.decoder_hidden} and {self.encoder_hidden}; use 'general' for other sizes"
            )
