"""Translation: sentences in, translations with scores, tokens and alignments out."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.decoding import decoder
from edge_attn.decoding.beam_search import check, search
from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import InputError, UsageError
from edge_attn.registry import RUNTIMES, resolve
from edge_attn.runtimes.base import check_precision, is_checkpoint, open_runtime
from edge_attn.runtimes.tasks.alignment import pharaoh, word_pharaoh
from edge_attn.runtimes.tasks.batching import BATCH_TOKENS, by_length
from edge_attn.runtimes.tasks.scoring import Score, score_pairs
from edge_attn.runtimes.tasks.unk_replacement import check_replacement, replace_unknown_tokens
from edge_attn.spec import Runtime
from edge_attn.text.pipeline import Text, truncate
from edge_attn.text.tokenizers import UNK

WINDOW = 256
"""Number of sentences that `translate_iter` reads ahead."""


@dataclass(frozen=True)
class Translation:
    """One translation of one sentence."""

    text: str
    score: float
    """Ranking score: the log-probability divided by the length penalty, with the options' other penalties.

    NaN, with an empty text, where the options leave no token that can follow."""
    log_prob: float
    """Log-probability of the tokens and the end symbol."""
    tokens: tuple[str, ...]
    source_tokens: tuple[str, ...]
    alignment: np.ndarray | None = field(default=None, compare=False)
    """Attention weights (tokens + 1, source_tokens), with the end symbol's row and column; None without attention."""
    finished: bool = True
    """False where max_length ended the translation."""
    cut: bool = False
    """True if the source was longer than the model's maximum, so that only its beginning was translated."""
    source_length: int = 0
    """Number of tokens of the whole source, without the end symbol."""
    n_best: tuple[Translation, ...] = field(default=(), compare=False, repr=False)
    """All requested hypotheses (n-best, samples or alternatives), this one first; empty on the others."""

    def pharaoh(self) -> str:
        """Return `i-j` for each target token j and the source token i with its largest weight, without end symbols."""
        return pharaoh(self.alignment, len(self.tokens))

    def word_pharaoh(self, text: Text) -> str:
        """Return `i-j` for each target word j, as `alignment.word_pharaoh`. Words are separated by white space."""
        target = text.target.spaced(self.tokens, " \u2047 ")  # the unknown token is a word in the generated text
        return word_pharaoh(self.alignment, text.source.spaced(self.source_tokens[:-1]), target)


class SourceCutWarning(UserWarning):
    """A sentence was longer than the model's maximum, and was cut."""


class Translator:
    """A model that translates, on one runtime. `Translator.open` and `edge_attn.load` open one.

    As a context manager it is closed at the end of the block. Several threads may use one model at the same time on the
    CPU, and their results are those of one thread. A pickled or copied model is opened again from its path, so
    it can be sent to another process.
    """

    def __init__(self, runtime: Runtime, text: Text, max_source: int) -> None:
        self.runtime, self.text, self.max_source = runtime, text, max_source
        self._closed = False
        self._opened_from: tuple[Path, str, RuntimeOptions] | None = None

    @classmethod
    def open(cls, path: Path | Bundle, runtime: str = "ort-cpu", options: RuntimeOptions = DEFAULT) -> Translator:
        """Open a bundle on `runtime`, or a checkpoint on torch, the reference.

        Raises:
            BundleError: not a bundle, or damaged.
            UsageError: an unknown runtime, or one that does not support the precision.
            NotTestedError: the runtime is not installed, or the bundle has no graphs of this precision for it.
        """
        if isinstance(path, Path) and is_checkpoint(path):
            if runtime not in RUNTIMES:
                resolve("runtime", RUNTIMES, runtime)
            check_precision("torch", options)
            live = resolve("runtime", RUNTIMES, "torch")(path, options=options)
            translator = cls(live.references.reference, live.text, live.max_source)
        else:
            bundle = path if isinstance(path, Bundle) else Bundle.open(path)
            path = bundle.path
            translator = cls(open_runtime(bundle, runtime, options), checked_text(bundle), bundle.manifest.max_source)
        translator._opened_from = (path.absolute(), runtime, options)
        return translator

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and the options, because a runtime cannot be pickled.

        Raises:
            UsageError: the model was closed.
            TypeError: it was built from a runtime, not opened from a path.
        """
        self._check_open()
        if self._opened_from is None:
            raise TypeError("this model was not opened from a path, so it cannot be pickled or copied")
        return type(self).open, self._opened_from

    def close(self) -> None:
        """Free the memory of the runtime. Further calls do nothing; a translation after it is a UsageError."""
        if not self._closed:
            self._closed = True
            self.runtime.close()

    def __enter__(self) -> Translator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this model was closed; load it again")

    def translate(
        self,
        sentences: Iterable[str],
        beam: int | None = None,
        n_best: int | None = None,
        length_penalty: float | None = None,
        max_length: int | None = None,
        alignments: bool = True,
        batch_tokens: int = BATCH_TOKENS,
        replace_unknown: bool = False,
        phrase_table: Mapping[str, str] | None = None,
        config: SearchConfig | None = None,
        prefixes: Iterable[str] | None = None,
        suppress: Iterable[str] = (),
    ) -> list[Translation]:
        """Translate sentences and return their translations in order.

        An empty sentence has an empty translation. A sentence longer than the model's maximum is cut, with a
        SourceCutWarning.

        Args:
            sentences: source sentences.
            beam: beam size; 1 is greedy search. Like the next three, it replaces the value of `config`.
            n_best: number of translations of each sentence, in `Translation.n_best`.
            length_penalty: exponent of the length penalty.
            max_length: maximum number of target tokens, the end symbol included.
            alignments: whether translations contain their attention weights.
            batch_tokens: maximum size of a batch, in source tokens times beam.
            replace_unknown: replace each unknown target token by the source word with its largest attention weight.
            phrase_table: replacements of source words, used with `replace_unknown`.
            config: all search options.
            prefixes: text that each translation begins with, one a sentence.
            suppress: entries of the target vocabulary that are never generated.

        Raises:
            UsageError: an option out of range, or one that this model does not support.
            InputError: a sentence that is not a string, or a prefix with tokens that the vocabulary does not have.
        """
        for name, texts in (("sentences", sentences), ("prefixes", prefixes), ("suppressed pieces", suppress)):
            if isinstance(texts, str):
                raise UsageError(f"translate takes a list of {name}, got one string; put it in a list")
        table = check_replacement(self.runtime, replace_unknown, phrase_table)
        config = self._config(beam, n_best, length_penalty, max_length, config, suppress)
        sentences = list(sentences)
        prefix_ids = None if prefixes is None else self._prefixes(list(prefixes), len(sentences), config)
        translations: dict[int, Translation] = {}
        for i, translation in self.translate_batches(sentences, config, alignments, batch_tokens, table, prefix_ids):
            translations[i] = translation
            if translation.cut:
                self._warn_about_cut(i, translation)
        return [translations[i] for i in range(len(sentences))]

    def translate_iter(
        self,
        sentences: Iterable[str],
        beam: int | None = None,
        n_best: int | None = None,
        length_penalty: float | None = None,
        max_length: int | None = None,
        alignments: bool = True,
        window: int = WINDOW,
        config: SearchConfig | None = None,
        suppress: Iterable[str] = (),
    ) -> Iterator[Translation]:
        """Return an iterator over the translations of a stream of sentences, in order and in bounded memory.

        It reads `window` sentences ahead, so that sentences of similar length share a batch. The options are checked at
        once, the sentences as they are read.

        Args:
            sentences: source sentences, as an open file, whose line feeds do not count.
            beam: beam size; 1 is greedy search. Like the next three, it replaces the value of `config`.
            n_best: number of translations of each sentence, in `Translation.n_best`.
            length_penalty: exponent of the length penalty.
            max_length: maximum number of target tokens, the end symbol included.
            alignments: whether translations contain their attention weights.
            window: number of sentences that are read ahead; 1 answers each sentence before the next one is read.
            config: all search options.
            suppress: entries of the target vocabulary that are never generated.

        Raises:
            UsageError: an option out of range, or one that this model does not support.
            InputError: a sentence that is not a string; the translations of the windows before it are returned first.
        """
        if isinstance(sentences, str):
            raise UsageError("translate_iter takes an iterable of sentences, got one string; put it in a list")
        if window < 1:
            raise UsageError(f"`window` must be at least 1, got {window}")
        validated = self._config(beam, n_best, length_penalty, max_length, config, suppress)
        return self._iterate(iter(sentences), validated, alignments, window)

    def _iterate(
        self, sentences: Iterator[str], config: SearchConfig, alignments: bool, window: int
    ) -> Iterator[Translation]:
        first = 0
        while lines := list(itertools.islice(sentences, window)):
            for i, line in enumerate(lines):
                if not isinstance(line, str):
                    raise InputError(f"sentence {first + i} must be a string, got {type(line).__name__}")
            translations = dict(self.translate_batches(lines, config, alignments))
            for i in range(len(lines)):
                if translations[i].cut:
                    self._warn_about_cut(first + i, translations[i])
                yield translations[i]
            first += len(lines)

    def _warn_about_cut(self, sentence: int, translation: Translation) -> None:
        tokens = len(translation.source_tokens) - 1
        warnings.warn(
            f"sentence {sentence}: only the first {tokens} of {translation.source_length} tokens were translated",
            SourceCutWarning,
            stacklevel=3,
        )

    def _config(
        self,
        beam: int | None,
        n_best: int | None,
        length_penalty: float | None,
        max_length: int | None,
        config: SearchConfig | None,
        suppress: Iterable[str],
    ) -> SearchConfig:
        """Return `config` with the options that replace its values, checked against the model."""
        options = {"beam": beam, "n_best": n_best, "length_penalty": length_penalty, "max_length": max_length}
        changes: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        return self.validate_config(dataclasses.replace(config or SearchConfig(), **changes), suppress)

    def validate_config(self, config: SearchConfig, suppress: Iterable[str] = ()) -> SearchConfig:
        """Return `config` with these entries of the target vocabulary suppressed, if the model supports them.

        Raises:
            UsageError: the vocabulary has no such entry, or the model does not support an option.
        """
        self._check_open()
        pieces = list(suppress)
        if pieces:
            ids = {piece: i for i, piece in enumerate(self.text.target.pieces(range(len(self.text.target))))}
            for piece in pieces:
                if piece not in ids:
                    hint = "; a piece that begins a word begins with ▁" if self.text.kind == "sentencepiece" else ""
                    raise UsageError(f"{piece!r} cannot be suppressed: it is no entry of the target vocabulary{hint}")
            config = dataclasses.replace(config, suppress=(*config.suppress, *(ids[piece] for piece in pieces)))
        check(self.runtime, config)
        return config

    def prefix(self, text: str, config: SearchConfig) -> list[int]:
        """Return the token ids of a prefix.

        Raises:
            InputError: it contains unknown tokens, or leaves no room for what comes after it.
        """
        ids = self.text.target.encode(text)
        if UNK in ids:
            unknown = self.text.target.surface_forms(text)[ids.index(UNK)]
            raise InputError(f"the target vocabulary has no {unknown!r}")
        room = config.max_length - (config.alternatives > 0)
        if len(ids) > room:
            raise InputError(f"{len(ids)} tokens, and `max_length` leaves room for {room}")
        return ids

    def _prefixes(self, texts: Sequence[str], sentences: int, config: SearchConfig) -> list[list[int]]:
        if len(texts) != sentences:
            raise UsageError(f"expected a prefix for each of the {sentences} sentences, got {len(texts)}")
        prefixes = []
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"prefix {i} must be a string, got {type(text).__name__}")
            try:
                prefixes.append(self.prefix(text, config))
            except InputError as error:
                raise InputError(f"prefix {i}: {error}") from error
        return prefixes

    def score(
        self, pairs: Iterable[tuple[str, str]], alignments: bool = False, batch_tokens: int = BATCH_TOKENS
    ) -> list[Score]:
        """Return the log-probabilities of each (source, target), token by token, in order.

        Raises:
            InputError: a pair that is not two strings.
        """
        self._check_open()
        scores = score_pairs(self.runtime, self.text, self.max_source, pairs, alignments, batch_tokens)
        for i, score in enumerate(scores):
            if score.cut:
                warnings.warn(
                    f"pair {i}: only the first {len(score.source_tokens) - 1} of {score.source_length} source tokens "
                    f"were read",
                    SourceCutWarning,
                    stacklevel=2,
                )
        return scores

    def translate_batches(
        self,
        sentences: Sequence[str],
        config: SearchConfig,
        alignments: bool,
        batch_tokens: int = BATCH_TOKENS,
        phrase_table: Mapping[str, str] | None = None,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[tuple[int, Translation]]:
        """Yield (index, translation) as batches of sentences of similar length are done.

        Args:
            sentences: source sentences.
            config: search options, checked by `validate_config`.
            alignments: whether translations contain their attention weights.
            batch_tokens: maximum size of a batch, in source tokens times beam.
            phrase_table: replacements for unknown tokens; empty copies source words, None replaces nothing.
            prefixes: token ids that each translation begins with.
        """
        needs_weights = alignments or phrase_table is not None
        sources: dict[int, list[int]] = {}
        lengths: dict[int, int] = {}
        for i, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise InputError(f"sentence {i} must be a string, got {type(sentence).__name__}")
            if not sentence.strip():
                yield i, Translation("", 0.0, 0.0, (), ())
                continue
            ids = self.text.encode_source(sentence)
            if len(ids) == 1:  # no token, not even an unknown one
                yield i, Translation("", 0.0, 0.0, (), ())
                continue
            sources[i], lengths[i] = truncate(ids, self.max_source), len(ids) - 1
        for indices in by_length(sources, batch_tokens // config.width, self.runtime.max_batch):
            batch = [sources[i] for i in indices]
            batch_prefixes = None if prefixes is None else [prefixes[i] for i in indices]
            n_best = search(self.runtime, batch, config, needs_weights, batch_prefixes)
            for i, hypotheses in zip(indices, n_best, strict=True):
                yield i, self._translation(sentences[i], sources[i], hypotheses, lengths[i], phrase_table)

    def _translation(
        self,
        sentence: str,
        source: list[int],
        hypotheses: Sequence[Hypothesis],
        source_length: int,
        phrase_table: Mapping[str, str] | None,
    ) -> Translation:
        target = self.text.target
        source_tokens = tuple(self.text.source.pieces(source))
        words = [] if phrase_table is None else self.text.source.surface_forms(sentence)[: len(source) - 1]
        pieces = [replace_unknown_tokens(h, target.pieces(h.tokens), words, phrase_table) for h in hypotheses]
        translations = [
            Translation(
                text=target.decode(hypothesis.tokens) if phrase_table is None else target.join(tokens),
                score=hypothesis.score,
                log_prob=hypothesis.log_prob,
                tokens=tuple(tokens),
                source_tokens=source_tokens,
                alignment=None if hypothesis.alignment is None else hypothesis.alignment[:, : len(source)],
                finished=hypothesis.finished,
                cut=source_length >= len(source),
                source_length=source_length,
            )
            for hypothesis, tokens in zip(hypotheses, pieces, strict=True)
        ]
        return dataclasses.replace(translations[0], n_best=tuple(translations))


def checked_text(bundle: Bundle) -> Text:
    """Return the text processing of a bundle.

    Raises:
        BundleError: a vocabulary has more or fewer entries than the graphs.
    """
    text = bundle.text()
    decoder.check_graphs(bundle.manifest.graphs, str(bundle.path))
    decoder.check_vocabularies(bundle.manifest.graphs, (len(text.source), len(text.target)), str(bundle.path))
    return text
