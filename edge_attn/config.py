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

from edge_attn.errors import ConfigError, InputError, UsageError
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


LENGTH_PENALTIES = ("none", "avg", "wu")


@dataclass(frozen=True)
class SearchConfig:
    """How a sentence is searched for; the same for every runtime."""

    beam: int = 4
    """Hypotheses kept at each step; 1 is greedy search."""
    n_best: int = 1
    """Hypotheses returned: at most `beam`, or any number of independent samples."""
    length_penalty: float = 1.0
    """alpha: the power of what the log-probability is divided by."""
    max_length: int = 200
    """Tokens after which a sentence is ended."""
    length_penalty_kind: str = "avg"
    """What a hypothesis of n tokens, the end symbol counted, is divided by: none, 1; avg, n ** alpha; wu, the length
    penalty of Wu et al. 2016 (https://arxiv.org/abs/1609.08144), equation 14, ((5 + n) / 6) ** alpha."""
    coverage_penalty: float = 0.0
    """beta of Wu et al. 2016, equation 14: what was hardly attended to lowers the score; 0 turns it off."""
    repetition_penalty: float = 1.0
    """theta of Keskar et al. 2019 (https://arxiv.org/abs/1909.05858), section 4.1: the log-probability of a token that
    the hypothesis already holds counts so many times; 1 turns it off."""
    no_repeat_ngram: int = 0
    """No sequence of so many tokens comes twice (Paulus et al. 2018, https://arxiv.org/abs/1705.04304, section 2.5); 0
    turns it off."""
    min_length: int = 0
    """Tokens before which a sentence does not end."""
    suppress: tuple[int, ...] = ()
    """Tokens that never come, unless a prefix holds them."""
    groups: int = 1
    """Parts of the beam that are searched one after another, each kept away from the tokens of those before it
    (Vijayakumar et al. 2018, https://arxiv.org/abs/1610.02424, equation 5); must divide the beam."""
    diversity: float = 0.0
    """lambda of Vijayakumar et al. 2018, with the Hamming diversity of section 5.1."""
    alternatives: int = 0
    """So many different tokens after the prefix, the most likely first, each completed by a search of its own; 0: one
    search, of all of them."""
    sample: bool = False
    """Tokens are drawn, not searched for; needs a beam of 1."""
    temperature: float = 1.0
    """Of what is drawn from: p ** (1 / temperature), renormalised."""
    top_k: int = 0
    """Only the k most likely tokens are drawn from (Fan et al. 2018, https://arxiv.org/abs/1805.04833); 0: all."""
    top_p: float = 1.0
    """Only the fewest tokens whose probabilities sum to p are drawn from: the nucleus of Holtzman et al. 2020
    (https://arxiv.org/abs/1904.09751), equation 2."""
    seed: int = 0
    """What is drawn follows from the seed, the sentence and the number of the sample alone."""

    def __post_init__(self) -> None:
        for name, least in (
            ("beam", 1),
            ("max_length", 1),
            ("no_repeat_ngram", 0),
            ("min_length", 0),
            ("groups", 1),
            ("alternatives", 0),
            ("top_k", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, found {getattr(self, name)}")
        for name, low, high in (
            ("length_penalty", 0.0, 10.0),
            ("coverage_penalty", 0.0, 10.0),
            ("repetition_penalty", 1.0, 10.0),
            ("diversity", 0.0, 100.0),
            ("temperature", 0.01, 100.0),
            ("top_p", 1e-6, 1.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} must lie between {low:g} and {high:g}, found {getattr(self, name)}")
        if self.length_penalty_kind not in LENGTH_PENALTIES:
            raise UsageError(
                f"length_penalty_kind must be one of {', '.join(LENGTH_PENALTIES)}, found {self.length_penalty_kind!r}"
            )
        if self.sample:
            if self.beam != 1:
                raise UsageError(f"sampling draws one token at a time: it needs a beam of 1, found beam {self.beam}")
            if self.n_best < 1:
                raise UsageError(f"n_best must be at least 1, found {self.n_best}")
        elif not 1 <= self.n_best <= self.beam:
            raise UsageError(f"n_best must lie between 1 and the beam ({self.beam}), found {self.n_best}")
        for name in ("temperature", "top_k", "top_p", "seed"):
            if not self.sample and getattr(self, name) != getattr(SearchConfig, name):
                raise UsageError(f"{name} is for sampling, and sample is off")
        if self.min_length > self.max_length:
            raise UsageError(f"min_length must be at most max_length ({self.max_length}), found {self.min_length}")
        if self.beam % self.groups:
            raise UsageError(f"groups must divide the beam ({self.beam}), found {self.groups}")
        if (self.groups > 1) != (self.diversity > 0.0):
            raise UsageError(
                f"groups above 1 and a diversity above 0 need each other, found groups {self.groups} and diversity "
                f"{self.diversity:g}"
            )
        if self.alternatives and (self.sample or self.groups > 1 or self.n_best > 1):
            raise UsageError("alternatives are searched for one by one: without sample, groups or n_best")

    @property
    def searches(self) -> int:
        """Independent ones of each sentence: groups of the beam, samples, or alternatives."""
        return self.n_best if self.sample else self.alternatives or self.groups

    @property
    def width(self) -> int:
        """Hypotheses of each sentence that live at a time, at most."""
        return self.beam // self.groups * self.searches

    @property
    def returned(self) -> int:
        """Hypotheses of each sentence, at most."""
        return self.alternatives or self.n_best


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime is opened; the same for every verb that runs a bundle."""

    threads: int | None = None
    """Of the CPU; the runtime's own choice if None."""
    precision: str = "fp32"
    """fp32, fp16 or int8: the graphs that run, the portable ones or those of targets/<target>-<precision>."""
    allow_fallback: bool = False
    """ort-cuda: where CUDA is missing the CPU runs, and the provider's name says so."""
    cache_dir: Path | None = None
    """Of engines; None: edge-attn in the user's cache folder."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, found {self.threads}")


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
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
