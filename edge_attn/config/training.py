"""The training configuration: one TOML file with the tables `data`, `text`, `model` and `training`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.validation import at_least, one_of, positive, read_toml
from edge_attn.errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """Table `data`: files of sentence pairs."""

    train: str
    """File of pairs, one a line, `source<separator>target`, or its .gz. Relative to `--data` or the TOML file."""
    valid: str = ""
    """File of pairs for early stopping. Empty: the last `holdout` lines of `train`."""
    holdout: int = 0
    """Number of last lines of `train` to validate with instead of `valid`."""
    separator: str = "\t"
    """Separator of source and target in a line."""
    max_tokens: int = 100
    """Maximum tokens of each side of a training pair. Longer pairs are left out."""

    def __post_init__(self) -> None:
        if not self.separator:
            raise ConfigError("separator must not be empty")
        at_least("holdout", self.holdout, 0)
        if bool(self.valid) == bool(self.holdout):
            raise ConfigError("set either valid or holdout (a number of lines of train), and not both")
        at_least("max_tokens", self.max_tokens, 1)


@dataclass(frozen=True)
class TextConfig:
    """Table `text`: tokenizers, which are trained on the training pairs."""

    kind: str = "sentencepiece"
    """Tokenizer: sentencepiece, words or characters."""
    source_size: int = 4000
    """Maximum size of the source vocabulary, with its four special entries."""
    target_size: int = 4000
    """Maximum size of the target vocabulary, with its four special entries."""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("sentencepiece", "words", "characters"))
        at_least("source_size", self.source_size, 5)
        at_least("target_size", self.target_size, 5)


@dataclass(frozen=True)
class TrainingConfig:
    """Table `training`: optimization, validation and checkpoints."""

    seed: int = 1
    """Seed of initial weights, dropout and the order of pairs."""
    updates: int = 10000
    """Updates of a complete run. The learning rate falls linearly to zero at the last one."""
    warmup: int = 400
    """Updates over which the learning rate rises linearly. It falls afterwards, if `updates` is larger."""
    batch_tokens: int = 2048
    """Target tokens of one update, with padding."""
    learning_rate: float = 1e-3
    """Highest learning rate of Adam, reached after the warm-up."""
    label_smoothing: float = 0.1
    """Probability that the loss spreads evenly over the vocabulary, in [0, 1)."""
    clip: float = 1.0
    """Maximum norm of the gradient, to which a larger one is clipped."""
    validate_every: int = 1000
    """Updates between two validations."""
    checkpoint_every: int = 200
    """Updates between two saved states from which a killed run resumes."""
    patience: int = 10
    """Validations without a better loss after which training stops."""
    storage: str = "fp32"
    """Precision of the stored weights. fp16 halves the checkpoint; the reference then computes in fp32 with them."""
    compute: str = "fp32"
    """Precision of matrix products in training, fp32 or bf16. Weights and the exported model stay fp32."""

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
            raise ConfigError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")


@dataclass(frozen=True)
class Config:
    """A complete training configuration."""

    data: DataConfig
    text: TextConfig = field(default_factory=TextConfig)
    model: Seq2SeqConfig = field(default_factory=Seq2SeqConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def read_config(path: Path) -> Config:
    """Read the configuration from the TOML file `path`. Raises the errors of `read_toml`."""
    return read_toml(Config, path)
