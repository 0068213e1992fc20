"""The training configuration: one TOML file with the tables `data`, `text`, `model` and `training`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_attn.config.models import Seq2SeqConfig
from edge_attn.config.validation import at_least, at_most, one_of, positive, read_toml
from edge_attn.errors import ConfigError

NORMALIZATIONS = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity")
"""Normalization rules of the sentencepiece library."""
NORMAL_FORMS = ("nfc", "nfkc", "none")
"""Normalizations of words and characters."""

LARGEST_VOCABULARY = 1 << 24


@dataclass(frozen=True)
class DataConfig:
    """Table `data`: files of sentence pairs."""

    train: str | tuple[str, ...]
    """File of pairs, one a line, `source<separator>target`, or two parallel files, as ["train.de", "train.en"]. Each
    can be compressed (.gz). Relative to `--data` or the TOML file."""
    valid: str | tuple[str, ...] = ""
    """File of pairs for early stopping, or two files, as `train`. Empty: the last `holdout` lines of `train`."""
    holdout: int = 0
    """Number of last lines of `train` to validate with instead of `valid`."""
    separator: str = "\t"
    """Separator of source and target in a line."""
    columns: tuple[int, ...] = ()
    """Numbers of the columns of source and target in a file of pairs, as [1, 2]. Empty: a line has two columns, or each
    has three, of which the first two are read."""
    max_tokens: int = 100
    """Maximum tokens of each side of a training pair. Longer pairs are left out."""

    def __post_init__(self) -> None:
        if not self.separator:
            raise ConfigError("separator must not be empty")
        for name in ("train", "valid"):
            files = getattr(self, name)
            if not isinstance(files, str) and (len(files) != 2 or not all(files)):
                raise ConfigError(f"{name} must be one file of pairs or two parallel files, got {len(files)}")
        if self.columns and (len(self.columns) != 2 or min(self.columns) < 1):
            raise ConfigError(f"columns must be two numbers of at least 1, got {list(self.columns)}")
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
    normalization: str = ""
    """Normal form of the text. sentencepiece: nmt_nfkc, nfkc, nmt_nfkc_cf, nfkc_cf (cf folds case) or identity;
    words and characters: nfc, nfkc or none. Empty: nmt_nfkc for sentencepiece, nfc for the others."""
    case: str = "keep"
    """keep, or lower: both sides of the model read and write lower case."""
    character_coverage: float = 1.0
    """sentencepiece: share of the characters of the training text that are in the vocabulary, in (0, 1]. Less than 1
    leaves out the rarest ones, for text with thousands of different characters."""
    byte_fallback: bool = False
    """sentencepiece: represent each unknown character by its UTF-8 bytes, which take 256 entries."""
    split_digits: bool = False
    """sentencepiece: each digit is a piece of its own, so that numbers which the training text lacks are copied."""
    user_symbols: tuple[str, ...] = ()
    """Entries that each vocabulary has, and that are never split."""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("sentencepiece", "words", "characters"))
        at_least("source_size", self.source_size, 5)
        at_least("target_size", self.target_size, 5)
        for name in ("source_size", "target_size"):
            at_most(name, getattr(self, name), LARGEST_VOCABULARY)
        is_sentencepiece = self.kind == "sentencepiece"
        if self.normalization:
            one_of("normalization", self.normalization, NORMALIZATIONS if is_sentencepiece else NORMAL_FORMS)
        one_of("case", self.case, ("keep", "lower"))
        if not 0.0 < self.character_coverage <= 1.0:
            raise ConfigError(f"character_coverage must be in (0, 1], got {self.character_coverage}")
        for name in ("character_coverage", "byte_fallback", "split_digits"):
            if not is_sentencepiece and getattr(self, name) != getattr(TextConfig, name):
                raise ConfigError(f"{name} is an option of sentencepiece, and kind is {self.kind}; remove it")
        self._check_user_symbols()

    def _check_user_symbols(self) -> None:
        for symbol in self.user_symbols:
            if not symbol or any(character.isspace() or not character.isprintable() for character in symbol):
                raise ConfigError(f"user_symbols must be printable and without white space, got {symbol!r}")
            if symbol in ("<pad>", "<unk>", "<s>", "</s>"):
                raise ConfigError(f"user_symbols must not contain {symbol!r}, which every vocabulary has")
            if self.kind == "characters" and len(symbol) > 1:
                raise ConfigError(f"user_symbols must be single characters where kind is characters, got {symbol!r}")
        if len(set(self.user_symbols)) < len(self.user_symbols):
            raise ConfigError("user_symbols must not contain an entry twice")
        if len(self.user_symbols) + 4 >= min(self.source_size, self.target_size):
            raise ConfigError(f"{len(self.user_symbols)} user_symbols leave no room in source_size or target_size")

    @property
    def normal_form(self) -> str:
        """Return the normalization, or the default of the kind."""
        return self.normalization or ("nmt_nfkc" if self.kind == "sentencepiece" else "nfc")


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
    average: float = 0.0
    """Decay of the moving average of the weights, in [0, 1), as 0.999. Validated and stored instead of the weights."""
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
    """Precision of products in training: fp32, bf16, fp16, or auto: bf16 or fp16 on a GPU, fp32 on a CPU. Weights and
    the exported model stay fp32."""
    scored_sentences: int = 200
    """Number of validation sentences that are translated at each validation for BLEU and chrF. 0: none."""

    def __post_init__(self) -> None:
        one_of("storage", self.storage, ("fp32", "fp16"))
        one_of("compute", self.compute, ("auto", "fp32", "bf16", "fp16"))
        for name in ("updates", "batch_tokens", "validate_every", "checkpoint_every", "patience"):
            at_least(name, getattr(self, name), 1)
        at_least("warmup", self.warmup, 0)
        at_least("scored_sentences", self.scored_sentences, 0)
        at_least("seed", self.seed, 0)
        at_most("seed", self.seed, 2**63 - 1)
        for name in ("learning_rate", "clip"):
            positive(name, getattr(self, name))
        if not 0.0 <= self.average < 1.0:
            raise ConfigError(f"average must be in [0, 1), got {self.average}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")


@dataclass(frozen=True)
class Config:
    """A complete training configuration."""

    data: DataConfig
    text: TextConfig = field(default_factory=TextConfig)
    model: Seq2SeqConfig = field(default_factory=Seq2SeqConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def read_config(path: Path, settings: Sequence[str] = ()) -> Config:
    """Read the configuration from the TOML file `path`; `settings`, as "training.updates=40", replace its values.

    Raises the errors of `read_toml`.
    """
    return read_toml(Config, path, settings)
