"""`edge-attn evaluate`: BLEU, chrF and BLEU by source length: every quality number that we claim."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import MissingExtraError, UsageError
from edge_attn.runtimes.base import DEFAULT
from edge_attn.runtimes.tasks.translation import Translation, Translator
from edge_attn.text.corpus import read_pairs

BINS = ((1, 5), (6, 10), (11, 15), (16, 20), (21, 30), (31, 40), (41, 60))
"""Words of the source between white space."""
BIN_SIZE = 100
"""Sentences that a bin of `--by-length` is filled up to, by joining neighbours."""
RESAMPLES = 1000

Pair = tuple[str, str]


@dataclass(frozen=True)
class Score:
    """Corpus scores of one set of sentences."""

    sentences: int
    bleu: float
    low: float
    """BLEU's 95 % interval, by bootstrap."""
    high: float
    chrf: float
    exact: float
    """Share of translations that equal their reference."""


@dataclass(frozen=True)
class Bin:
    """Sentences whose source has `first` to `last` words; `joined` of them are neighbours put together."""

    first: int
    last: int
    joined: int
    score: Score


@dataclass(frozen=True)
class Evaluation:
    model: str
    provider: str
    beam: int
    total: Score
    bins: tuple[Bin, ...]
    signatures: tuple[str, ...]
    seconds: float
    cut: int
    """Sources longer than the model reads, of which only the beginning was translated."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the search, those beside the beam that are not the defaults."""

    def content(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        total = self.total
        lines = [
            f"{self.model} ({self.provider}), beam {self.beam}, {total.sentences} distinct sources, first reference",
            f"BLEU {total.bleu:.2f} (95 % interval {total.low:.2f} to {total.high:.2f})  chrF {total.chrf:.2f}  "
            f"exact match {100 * total.exact:.2f} %  in {self.seconds:.1f} s",
        ]
        lines += ["options " + ", ".join(f"{k} {v}" for k, v in self.options.items())] if self.options else []
        lines += [f"signature {signature}" for signature in self.signatures]
        lines += [f"{self.cut} of the sources are longer than the model reads, and were cut"] if self.cut else []
        if self.bins:
            lines.append("source words  sentences  of them joined   BLEU  95 % interval    chrF")
            lines += [
                f"{f'{b.first}-{b.last}':>12}  {b.score.sentences:>9}  {b.joined:>14}  {b.score.bleu:>5.2f}  "
                f"{b.score.low:>5.2f} to {b.score.high:>5.2f}  {b.score.chrf:>6.2f}"
                for b in self.bins
            ]
        return "\n".join(lines)


def evaluate(
    model: Path,
    corpus: Path,
    config: SearchConfig | None = None,
    separator: str = "\t",
    by_length: bool = False,
    limit: int | None = None,
    suppress: Sequence[str] = (),
    runtime: str = "ort-cpu",
    options: RuntimeOptions = DEFAULT,
) -> Evaluation:
    """Scores of `model`, a bundle or a checkpoint, on the first reference of each distinct source of `corpus`.

    Raises:
        InputError: the corpus is not pairs of sentences.
        MissingExtraError: sacrebleu is not installed.
    """
    if not separator:
        raise UsageError("separator must not be empty")
    first: dict[str, str] = {}
    for source, target in read_pairs(corpus, separator):
        first.setdefault(source, target)
    pairs = list(first.items())[:limit]
    bleu, chrf = _metrics()
    translator = Translator.open(model, runtime, options)
    config = translator.validate_config(config or SearchConfig(), suppress)
    started = time.monotonic()
    translations = _translate(translator, pairs, config)
    found = dict(zip(pairs, (translation.text for translation in translations), strict=True))
    seconds = time.monotonic() - started
    bins = []
    for low, high in BINS if by_length else ():
        real = [pair for pair in pairs if low <= len(pair[0].split()) <= high]
        joined = _joined(pairs, low, high, BIN_SIZE - len(real))
        if not real and not joined:
            continue
        said = [found[pair] for pair in real] + [t.text for t in _translate(translator, joined, config)]
        bins.append(Bin(low, high, len(joined), _score(bleu, chrf, said, real + joined)))
    total = _score(bleu, chrf, [found[pair] for pair in pairs], pairs)
    signatures = (f"BLEU: {bleu.get_signature()}", f"chrF: {chrf.get_signature()}")
    cut = sum(translation.cut for translation in translations)
    provider = translator.runtime.provider
    default = asdict(SearchConfig())
    chosen = {name: value for name, value in vars(config).items() if name != "beam" and value != default[name]}
    if config.suppress:
        chosen["suppress"] = translator.text.target.pieces(config.suppress)
    return Evaluation(str(model), provider, config.beam, total, tuple(bins), signatures, seconds, cut, chosen)


def _translate(translator: Translator, pairs: Sequence[Pair], config: SearchConfig) -> list[Translation]:
    found = dict(translator.translate_iter([source for source, _ in pairs], config, alignments=False))
    return [found[i] for i in range(len(pairs))]


def _joined(pairs: Sequence[Pair], low: int, high: int, wanted: int) -> list[Pair]:
    """Up to `wanted` runs of neighbouring pairs, of `low` to `high` source words in all.

    Each pair is in one run at most, and in none if it is itself as long, for then it is scored as it stands.
    """
    made: list[Pair] = []
    run: list[Pair] = []
    words = 0
    for pair in pairs:
        if len(made) >= wanted:
            break
        size = len(pair[0].split())
        if size >= low or words + size > high:
            run, words = [], 0
        if size >= low:
            continue
        run.append(pair)
        words += size
        if words >= low:
            made.append((" ".join(source for source, _ in run), " ".join(target for _, target in run)))
            run, words = [], 0
    return made


def _metrics() -> tuple[Any, Any]:
    try:
        from sacrebleu import BLEU, CHRF
    except ImportError as error:
        raise MissingExtraError("sacrebleu", "evaluate") from error
    return BLEU(), CHRF()


def _score(bleu: Any, chrf: Any, said: Sequence[str], pairs: Sequence[Pair]) -> Score:
    references = [target for _, target in pairs]
    found = bleu.corpus_score(said, [references], n_bootstrap=RESAMPLES)
    exact = sum(a == b for a, b in zip(said, references, strict=True)) / len(pairs)
    half = float(found._ci)
    mean = float(found._mean)
    chrf_score = float(chrf.corpus_score(said, [references]).score)
    return Score(len(pairs), float(found.score), mean - half, mean + half, chrf_score, exact)
