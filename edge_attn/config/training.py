"""The options people set: frozen, documented on the field, refusing nonsense. Standard library only.

A training configuration is one TOML file with the tables `data`, `text`, `model` and `training`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edge_attn.errors import ConfigError, InputError
from edge_attn.registry import ATTENTIONS, CELLS

T = TypeVar("T")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, found {value!r}")


def at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(f"{name} must be at least {least}, found {value}")


def positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ConfigError(f"{name} must be positive and finite, found {value}")


@dataclass(frozen=True)
class DataConfig:
    train: str
    """Pairs, one a line, `source<separator>target`; .gz is read too. Relative to `--data`, or to the configuration."""
    valid: str = ""
    """Pairs for early stopping; empty: the last `holdout` lines of `train`."""
    holdout: int = 0
    separator: str = "\t"
    max_tokens: int = 100
    """Pairs with a longer side, in tokens, are left out of training."""

    def __post_init__(self) -> None:
        if not self.separator:
            raise ConfigError("separator must not be empty")
        at_least("holdout", self.holdout, 0)
        if bool(self.valid) == bool(self.holdout):
            raise ConfigError("give either valid or holdout (a number of lines of train), and not both")
        at_least("max_tokens", self.max_tokens, 1)


@dataclass(frozen=True)
class TextConfig:
    kind: str = "sentencepiece"
    """sentencepiece, words or characters."""
    source_size: int = 4000
    """Entries of the source vocabulary, at most, the four special ones among them."""
    target_size: int = 4000

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("sentencepiece", "words", "characters"))
        at_least("source_size", self.source_size, 5)
        at_least("target_size", self.target_size, 5)


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
    normaliser: str = "softmax"
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
        one_of("normaliser", self.normaliser, ("softmax", "sparsemax"))
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
            raise ConfigError(f"dropout must lie in [0, 1), found {self.dropout}")
        if self.focus.startswith("local"):
            at_least("window", self.window, 1)
        elif self.window:
            raise ConfigError(
                f"focus = {self.focus!r} has no window, found window = {self.window}; it belongs to local-m and local-p"
            )
        if self.hard_training != "straight-through" and self.focus != "hard":
            raise ConfigError(f"hard_training = {self.hard_training!r} needs focus = 'hard', found {self.focus!r}")
        if self.coverage and self.focus != "global":
            raise ConfigError(f"coverage needs focus = 'global', found {self.focus!r}")
        if self.normaliser != "softmax" and self.focus == "hard":
            raise ConfigError("focus = 'hard' takes the largest energy: it has no normaliser but 'softmax'")
        if self.attention in ("dot", "scaled") and self.decoder_hidden != 2 * self.encoder_hidden:
            raise ConfigError(
                f"attention = {self.attention!r} needs decoder_hidden = 2 * encoder_hidden, found "
                f"{self.decoder_hidden} and {self.encoder_hidden}; use 'general' for other sizes"
            )


@dataclass(frozen=True)
class TrainingConfig:
    seed: int = 1
    updates: int = 10000
    """Updates of a whole run; the learning rate falls linearly to zero at the last one."""
    warmup: int = 400
    """Updates over which the learning rate rises; it only falls if they end before the run does."""
    batch_tokens: int = 2048
    """Target tokens of one update, padding counted."""
    learning_rate: float = 1e-3
    label_smoothing: float = 0.1
    clip: float = 1.0
    """The gradient's norm is cut to this."""
    validate_every: int = 1000
    checkpoint_every: int = 200
    """Updates between two states from which a killed run resumes."""
    patience: int = 10
    """Validations without a better loss after which training stops."""
    storage: str = "fp32"
    """fp16 halves the checkpoint; the reference is then the model with those weights widened to fp32."""
    compute: str = "fp32"
    """bf16 multiplies matrices in bfloat16 while training; weights and the exported model stay fp32."""

    def __post_init__(self) -> None:
        one_of("storage", self.storage, ("fp32", "fp16"))
        one_of("compute", self.compute, ("fp32", "bf16"))
        for name in ("updates", "batch_tokens", "validate_every", "checkpoint_every", "patience"):
            at_least(name, getattr(self, name), 1)
        at_least("warmup", self.warmup, 0)
        at_least("seed", self.seed, 0)
        if self.seed >= 2**63:
            raise ConfigError(f"seed must be less than 2**63, found {self.seed}")
        for name in ("learning_rate", "clip"):
            positive(name, getattr(self, name))
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing must lie in [0, 1), found {self.label_smoothing}")


@dataclass(frozen=True)
class Config:
    """A whole training configuration."""

    data: DataConfig
    text: TextConfig = field(default_factory=TextConfig)
    model: Seq2SeqConfig = field(default_factory=Seq2SeqConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def read_config(path: Path) -> Config:
    """The configuration in the TOML file `path`; raises what `read_toml` does."""
    return read_toml(Config, path)


def read_toml(kind: type[T], path: Path) -> T:
    """A dataclass of type `kind` from the TOML file `path`.

    Raises:
        InputError: it cannot be read.
        ConfigError: not TOML, an unknown key, a wrong type or a value out of range; the sentence names the key.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: a number may have too many digits
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return from_mapping(kind, tables, str(path))


def from_mapping(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass of type `kind` from plain values, nested dataclasses from nested tables.

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]  # kind is a dataclass
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(fields))}")
    made: dict[str, Any] = {}
    for name, declared in fields.items():
        if name in values:
            made[name] = _convert(hints[name], values[name], f"{where}: {name}")
        elif declared.default is dataclasses.MISSING and declared.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: the key {name!r} is missing")
    try:
        return kind(**made)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _convert(wanted: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(wanted)
    if dataclasses.is_dataclass(wanted):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, found {value!r}")
        return from_mapping(typing.cast(Any, wanted), value, where)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, found {value!r}")
        inner = typing.get_args(wanted)[0]
        return origin(_convert(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, found {value!r}")
        inner = typing.get_args(wanted)[1]
        return {str(key): _convert(inner, item, f"{where}.{key}") for key, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in typing.get_args(wanted) if a is not type(None)), value, where)
    if wanted is Any:
        return value
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ConfigError(f"{where} must be of type {wanted.__name__}, found {value!r}")
    return value
