"""The training configuration: one TOML file with the tables `data`, `text`, `model` and `training`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.validation import at_least, one_of, positive, read_toml
from edge_attn.errors import ConfigError


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
            raise ConfigError(f"seed must be less than 2**63, got {self.seed}")
        for name in ("learning_rate", "clip"):
            positive(name, getattr(self, name))
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")


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
