"""The task `seq2seq`: sentences in, translations with scores, tokens and alignments out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_attn import golden
from edge_attn.bundle import Bundle
from edge_attn.config import RuntimeOptions, SearchConfig
from edge_attn.errors import InputError, UsageError
from edge_attn.registry import RUNTIMES, SERVICES, resolve
from edge_attn.search import Hypothesis, search
from edge_attn.spec import Runtime
from edge_attn.text import Text
from runtimes.base import DEFAULT, check_precision, is_checkpoint, open_runtime

BATCH_TOKENS = 1024
"""Source tokens times beam of one batch, padding counted."""


@dataclass(frozen=True)
class Translation:
    """One translation of one sentence."""

    text: str
    score: float
    """The log-probability divided by length ** length_penalty."""
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
    """All hypotheses asked for, this one first; empty on the others."""

    def pharaoh(self) -> str:
        """`i-j` for each target token j and the source token i that it attends to most, the end symbols left out."""
        if self.alignment is None or len(self.source_tokens) < 2:
            return ""
        best = self.alignment[: len(self.tokens), :-1].argmax(1)
        return " ".join(f"{i}-{j}" for j, i in enumerate(best))


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
        beam: int = SearchConfig.beam,
        n_best: int = SearchConfig.n_best,
        length_penalty: float = SearchConfig.length_penalty,
        max_length: int = SearchConfig.max_length,
        alignments: bool = True,
        batch_tokens: int = BATCH_TOKENS,
    ) -> list[Translation]:
        """A translation of each sentence, in order; an empty sentence gives an empty translation.

        Raises:
            UsageError: an option that makes no sense.
        """
        config = SearchConfig(beam, n_best, length_penalty, max_length)
        if isinstance(sentences, str):
            raise UsageError("translate takes a list of sentences, found one string; put it in a list")
        sentences = list(sentences)
        found: dict[int, Translation] = {}
        for i, translation in self.each(sentences, config, alignments, batch_tokens):
            found[i] = translation
            if translation.cut:
                warnings.warn(
                    f"sentence {i} has more than {self.max_source} tokens; only the first were translated",
                    SourceCutWarning,
                    stacklevel=2,
                )
        return [found[i] for i in range(len(sentences))]

    def each(
        self, sentences: Sequence[str], config: SearchConfig, alignments: bool, batch_tokens: int = BATCH_TOKENS
    ) -> Iterator[tuple[int, Translation]]:
        """(index, translation) as batches of sentences of like length are done."""
        sources: dict[int, list[int]] = {}
        cut: set[int] = set()
        for i, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise InputError(f"sentence {i} must be a string, found {type(sentence).__name__}")
            if not sentence.strip():
                yield i, Translation("", 0.0, 0.0, (), ())
                continue
            ids, was_cut = golden.encode(self.text, sentence, self.max_source)
            if was_cut:
                cut.add(i)
            if len(ids) == 1:  # nothing that the vocabulary knows, not even as unknown
                yield i, Translation("", 0.0, 0.0, (), ())
                continue
            sources[i] = ids
        for indices in _by_length(sources, batch_tokens // config.beam, self.runtime.max_batch):
            some = [sources[i] for i in indices]
            for i, hypotheses in zip(indices, search(self.runtime, some, config, alignments), strict=True):
                yield i, self._translation(sources[i], hypotheses, i in cut)

    def _translation(self, source: list[int], hypotheses: Sequence[Hypothesis], cut: bool) -> Translation:
        source_tokens = tuple(self.text.source.pieces(source))
        made = [
            Translation(
                text=self.text.target.decode(hypothesis.tokens),
                score=hypothesis.score,
                log_prob=hypothesis.log_prob,
                tokens=tuple(self.text.target.pieces(hypothesis.tokens)),
                source_tokens=source_tokens,
                alignment=None if hypothesis.alignment is None else hypothesis.alignment[:, : len(source)],
                finished=hypothesis.finished,
                cut=cut,
            )
            for hypothesis in hypotheses
        ]
        best = made[0]
        return Translation(**{**vars(best), "n_best": tuple(made)})


def _by_length(sources: dict[int, list[int]], batch_tokens: int, most: int | None) -> Iterator[list[int]]:
    """Batches of indices of like length, shortest first, at most `batch_tokens` each with padding, and never empty;
    at most `most` indices each."""
    batch: list[int] = []
    for i in sorted(sources, key=lambda i: (len(sources[i]), i)):
        if batch and (len(sources[i]) * (len(batch) + 1) > batch_tokens or len(batch) == most):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
