"""The task `seq2seq`: sentences in, translations with scores, tokens and alignments out."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.beam_search import check, search
from edge_attn.decoding.hypothesis import Hypothesis
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import InputError, UsageError
from edge_attn.registry import RUNTIMES, SERVICES, resolve
from edge_attn.runtimes.base import DEFAULT, check_precision, is_checkpoint, open_runtime
from edge_attn.runtimes.tasks.alignment import pharaoh
from edge_attn.runtimes.tasks.batching import BATCH_TOKENS, by_length
from edge_attn.runtimes.tasks.scoring import Score, score_pairs
from edge_attn.runtimes.tasks.unk_replacement import check_replacement, replaced
from edge_attn.spec import Runtime
from edge_attn.text import pipeline
from edge_attn.text.pipeline import Text
from edge_attn.text.tokenizers import UNK


@dataclass(frozen=True)
class Translation:
    """One translation of one sentence."""

    text: str
    score: float
    """What the search ranked it by: the log-probability over the length penalty, with the options' other penalties;
    NaN, and an empty text, where the options leave no token that can follow."""
    log_prob: float
    tokens: tuple[str, ...]
    source_tokens: tuple[str, ...]
    alignment: np.ndarray | None = field(default=None, compare=False)
    """(tokens + 1, source_tokens) attention weights, the end symbol's row and column among them; None if the model has
    no attention or alignments were not asked for."""
    finished: bool = True
    """False where max_length cut it off."""
    cut: bool = False
    """True where the source was longer than the model reads; only its beginning was translated."""
    n_best: tuple[Translation, ...] = field(default=(), compare=False, repr=False)
    """All hypotheses asked for (n-best, samples or alternatives), this one first; empty on the others."""

    def pharaoh(self) -> str:
        """`i-j` for each target token j and the source token i that it attends to most, the end symbols left out."""
        return pharaoh(self.alignment, len(self.tokens))


class SourceCutWarning(UserWarning):
    """A sentence was longer than the model reads, and was cut."""


class Translator:
    """A model that translates, on one runtime."""

    def __init__(self, bundle: Bundle, runtime: str = "ort-cpu", options: RuntimeOptions = DEFAULT) -> None:
        self._set(open_runtime(bundle, runtime, options), bundle.text(), bundle.manifest.max_source)

    @classmethod
    def open(cls, path: Path, runtime: str = "ort-cpu", options: RuntimeOptions = DEFAULT) -> Translator:
        """A bundle on `runtime`, or a checkpoint on torch, the reference."""
        if not is_checkpoint(path):
            return cls(Bundle.open(path), runtime, options)
        if runtime not in RUNTIMES:
            resolve("runtime", RUNTIMES, runtime)
        check_precision("torch", options)
        made = cls.__new__(cls)
        made._set(*resolve("service", SERVICES, "open reference")(path, options))
        return made

    def _set(self, runtime: Runtime, text: Text, max_source: int) -> None:
        self.runtime, self.text, self.max_source = runtime, text, max_source

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
        """A translation of each sentence, in order; an empty sentence gives an empty translation.

        The search is that of `config`, where every option stands; `beam`, `n_best`, `length_penalty` and `max_length`
        may be given by themselves. `prefixes` are texts, one a sentence, that the translations begin with; `suppress`
        are entries of the target vocabulary that never come.

        `replace_unknown` puts, where the model says an unknown word, the source word that it attends to most, or what
        `phrase_table` has for it: runtimes/tasks/unk_replacement.py.

        Raises:
            UsageError: an option that makes no sense.
            InputError: a sentence that is no string, or a prefix that the model cannot say.
        """
        for name, texts in (("sentences", sentences), ("prefixes", prefixes), ("suppressed pieces", suppress)):
            if isinstance(texts, str):
                raise UsageError(f"translate takes a list of {name}, got one string; put it in a list")
        table = check_replacement(self.runtime, replace_unknown, phrase_table)
        given = {"beam": beam, "n_best": n_best, "length_penalty": length_penalty, "max_length": max_length}
        some: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        config = self.validate_config(dataclasses.replace(config or SearchConfig(), **some), suppress)
        sentences = list(sentences)
        begun = None if prefixes is None else self._prefixes(list(prefixes), len(sentences), config)
        found: dict[int, Translation] = {}
        for i, translation in self.translate_iter(sentences, config, alignments, batch_tokens, table, begun):
            found[i] = translation
            if translation.cut:
                warnings.warn(
                    f"sentence {i} has more than {self.max_source} tokens; only the first were translated",
                    SourceCutWarning,
                    stacklevel=2,
                )
        return [found[i] for i in range(len(sentences))]

    def validate_config(self, config: SearchConfig, suppress: Iterable[str] = ()) -> SearchConfig:
        """`config`, which this model can serve, and which then suppresses these entries of the target vocabulary too.

        Raises:
            UsageError: it has no such entry, or cannot serve an option.
        """
        wanted = list(suppress)
        if wanted:
            known = {piece: i for i, piece in enumerate(self.text.target.pieces(range(len(self.text.target))))}
            for piece in wanted:
                if piece not in known:
                    hint = "; a piece that begins a word begins with ▁" if self.text.kind == "sentencepiece" else ""
                    raise UsageError(f"{piece!r} cannot be suppressed: it is no entry of the target vocabulary{hint}")
            config = dataclasses.replace(config, suppress=(*config.suppress, *(known[piece] for piece in wanted)))
        check(self.runtime, config)
        return config

    def prefix(self, text: str, config: SearchConfig) -> list[int]:
        """The tokens of a prefix.

        Raises:
            InputError: it holds what the vocabulary does not know, or leaves no room for what comes after it.
        """
        ids = self.text.target.encode(text)
        if UNK in ids:
            unknown = self.text.target.surface_forms(text)[ids.index(UNK)]
            raise InputError(f"the target vocabulary does not know {unknown!r}")
        room = config.max_length - (config.alternatives > 0)
        if len(ids) > room:
            raise InputError(f"{len(ids)} tokens, and max_length leaves room for {room}")
        return ids

    def _prefixes(self, texts: Sequence[str], sentences: int, config: SearchConfig) -> list[list[int]]:
        if len(texts) != sentences:
            raise UsageError(f"each of the {sentences} sentences needs a prefix, got {len(texts)} prefixes")
        made = []
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"prefix {i} must be a string, got {type(text).__name__}")
            try:
                made.append(self.prefix(text, config))
            except InputError as error:
                raise InputError(f"prefix {i}: {error}") from error
        return made

    def score(
        self, pairs: Iterable[tuple[str, str]], alignments: bool = False, batch_tokens: int = BATCH_TOKENS
    ) -> list[Score]:
        """What the model thinks of each (source, target), token by token, in order: runtimes/tasks/scoring.py.

        Raises:
            InputError: a pair that is not two strings.
        """
        scores = score_pairs(self.runtime, self.text, self.max_source, pairs, alignments, batch_tokens)
        for i, found in enumerate(scores):
            if found.cut:
                warnings.warn(
                    f"the source of pair {i} has more than {self.max_source} tokens; only the first were read",
                    SourceCutWarning,
                    stacklevel=2,
                )
        return scores

    def translate_iter(
        self,
        sentences: Sequence[str],
        config: SearchConfig,
        alignments: bool,
        batch_tokens: int = BATCH_TOKENS,
        phrase_table: Mapping[str, str] | None = None,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[tuple[int, Translation]]:
        """(index, translation) as batches of sentences of like length are done. With a phrase table, which may be
        empty, unknown words are replaced (unk_replacement.py). `prefixes` are tokens, one row a sentence."""
        aligned = alignments or phrase_table is not None
        sources: dict[int, list[int]] = {}
        cut: set[int] = set()
        for i, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise InputError(f"sentence {i} must be a string, got {type(sentence).__name__}")
            if not sentence.strip():
                yield i, Translation("", 0.0, 0.0, (), ())
                continue
            ids, was_cut = pipeline.encode_truncated(self.text, sentence, self.max_source)
            if was_cut:
                cut.add(i)
            if len(ids) == 1:  # nothing that the vocabulary knows, not even as unknown
                yield i, Translation("", 0.0, 0.0, (), ())
                continue
            sources[i] = ids
        for indices in by_length(sources, batch_tokens // config.width, self.runtime.max_batch):
            some = [sources[i] for i in indices]
            begun = None if prefixes is None else [prefixes[i] for i in indices]
            for i, hypotheses in zip(indices, search(self.runtime, some, config, aligned, begun), strict=True):
                yield i, self._translation(sentences[i], sources[i], hypotheses, i in cut, phrase_table)

    def _translation(
        self,
        sentence: str,
        source: list[int],
        hypotheses: Sequence[Hypothesis],
        cut: bool,
        phrase_table: Mapping[str, str] | None,
    ) -> Translation:
        target = self.text.target
        source_tokens = tuple(self.text.source.pieces(source))
        surface_forms = [] if phrase_table is None else self.text.source.surface_forms(sentence)[: len(source) - 1]
        pieces = [replaced(h, target.pieces(h.tokens), surface_forms, phrase_table) for h in hypotheses]
        made = [
            Translation(
                text=target.decode(hypothesis.tokens) if phrase_table is None else target.join(tokens),
                score=hypothesis.score,
                log_prob=hypothesis.log_prob,
                tokens=tuple(tokens),
                source_tokens=source_tokens,
                alignment=None if hypothesis.alignment is None else hypothesis.alignment[:, : len(source)],
                finished=hypothesis.finished,
                cut=cut,
            )
            for hypothesis, tokens in zip(hypotheses, pieces, strict=True)
        ]
        best = made[0]
        return Translation(**{**vars(best), "n_best": tuple(made)})
