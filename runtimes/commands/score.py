"""`edge-attn score`: what the model thinks of translations that are given, token by token.

    log p(y | x) = sum_j log p(y_j | y_1 ... y_{j-1}, x),    perplexity = exp(-log p(y | x) / J)

where the end symbol is y_J: it counts as a token. The decoder is fed the given tokens, whatever it would have said
itself (teacher forcing). A perplexity is of this model's tokens: models with other vocabularies compare by their
log-probabilities alone.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.beam_search import forced
from edge_attn.errors import InputError
from edge_attn.parity import golden
from edge_attn.runtimes.base import DEFAULT
from edge_attn.runtimes.commands.translate import WINDOW, open_output, plain, standard_output, writing
from edge_attn.runtimes.tasks.translation import BATCH_TOKENS, Translator, by_length, pharaoh
from edge_attn.spec import Runtime
from edge_attn.text.corpus import each_pair
from edge_attn.text.tokenizers import EOS, SPECIAL, UNK

Pair = tuple[str, str]


@dataclass(frozen=True)
class Score:
    """What the model thinks of one translation of one sentence."""

    tokens: tuple[str, ...]
    """Of the target, the end symbol left out."""
    log_probs: tuple[float, ...]
    """Of each token given those before it, and last that of the end symbol."""
    source_tokens: tuple[str, ...]
    unknown: int
    """Target tokens that the vocabulary does not know; each is scored as the unknown token."""
    cut: bool = False
    """True where the source was longer than the model reads; only its beginning was read."""
    alignment: np.ndarray | None = field(default=None, compare=False)
    """(tokens + 1, source_tokens) attention weights along the target, the end symbol's row and column among them; None
    if the model has no attention or alignments were not asked for."""

    @property
    def log_prob(self) -> float:
        return float(np.sum(self.log_probs))

    @property
    def perplexity(self) -> float:
        return _perplexity(self.log_prob, len(self.log_probs))

    def pharaoh(self) -> str:
        """`i-j` for each target token j and the source token i that it attends to most, the end symbols left out."""
        return pharaoh(self.alignment, len(self.tokens))


@dataclass(frozen=True)
class Total:
    """What the scores of a corpus come to."""

    pairs: int = 0
    tokens: int = 0
    """End symbols counted."""
    log_prob: float = 0.0
    unknown: int = 0
    cut: int = 0

    def __add__(self, score: Score) -> Total:
        return Total(
            self.pairs + 1,
            self.tokens + len(score.log_probs),
            self.log_prob + score.log_prob,
            self.unknown + score.unknown,
            self.cut + score.cut,
        )

    @property
    def perplexity(self) -> float:
        """Per token, over the corpus."""
        return _perplexity(self.log_prob, self.tokens)

    def __str__(self) -> str:
        parts = [
            f"{self.pairs} pairs, {self.tokens} tokens with the end symbols: log-probability {self.log_prob:.4f}, "
            f"perplexity {self.perplexity:.6g} per token"
        ]
        if self.unknown:
            parts.append(f"{self.unknown} of the target tokens are unknown to the model, and were scored as <unk>")
        if self.cut:
            parts.append(f"{self.cut} of the sources are longer than the model reads, and were cut")
        return "; ".join(parts)


def _perplexity(log_prob: float, tokens: int) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(-np.float64(log_prob) / tokens))


def score(
    bundle: Path,
    corpus: Path,
    output: Path | None = None,
    format: str = "text",
    separator: str = "\t",
    runtime: str = "ort-cpu",
    options: RuntimeOptions = DEFAULT,
) -> Total:
    """Scores each target of `corpus` given its source, into `output` (standard output): a line for a line, in order.

    As text: the log-probability, the perplexity and each token with its log-probability, with tabs between the three;
    an empty line has an empty line, and in jsonl none.

    Raises:
        InputError: a line that is no pair, named by its number; those before it are answered.
    """
    translator = Translator.open(bundle, runtime, options)
    total = Total()
    with writer(output) as write:
        for line in each_line(translator, corpus, separator):
            if line is not None:
                total += line.score
            write(_show(line) if format == "text" else jsonl(line, _content))
    return total


def _show(line: Line | None) -> str:
    if line is None:
        return "\n"
    found = line.score
    said = zip((*found.tokens, SPECIAL[EOS]), found.log_probs, strict=True)
    tokens = " ".join(f"{''.join('▁' if c.isspace() else c for c in token)}:{value:.4f}" for token, value in said)
    return f"{found.log_prob:.4f}\t{found.perplexity:.6g}\t{tokens}\n"


def _content(found: Score) -> dict[str, Any]:
    return {
        "log_prob": plain(found.log_prob),
        "perplexity": plain(found.perplexity),
        "tokens": found.tokens,
        "log_probs": [plain(value) for value in found.log_probs],
        "unknown": found.unknown,
    }


@dataclass(frozen=True)
class Line:
    """One line of a file of pairs, and what was found for it."""

    number: int
    source: str
    target: str
    score: Score


def jsonl(line: Line | None, content: Callable[[Score], dict[str, Any]]) -> str:
    """The line as JSON, with what `content` tells of its score; an empty line gives nothing."""
    if line is None:
        return ""
    told = {
        "line": line.number,
        "source": line.source,
        "target": line.target,
        "source_tokens": line.score.source_tokens,
        "cut": line.score.cut,
        **content(line.score),
    }
    return json.dumps(told, ensure_ascii=False) + "\n"


def each_line(
    translator: Translator, corpus: Path, separator: str = "\t", alignments: bool = False
) -> Iterator[Line | None]:
    """Each line of `corpus` with its score, in order, in bounded memory; None for an empty line.

    A source that was cut is told on standard error, and so is progress if that is a terminal.
    """
    number = 0
    with tqdm(unit=" lines", disable=None, file=sys.stderr) as bar:
        for window in _windows(each_pair(corpus, separator)):
            scores = iter(score_pairs(translator, [pair for pair in window if pair is not None], alignments))
            for pair in window:
                number += 1
                if pair is None:
                    yield None
                    continue
                found = next(scores)
                if found.cut:
                    print(
                        f"warning: line {number} has more than {translator.max_source} source tokens; "
                        f"only the first were read",
                        file=sys.stderr,
                    )
                yield Line(number, *pair, found)
            bar.update(len(window))


def _windows(pairs: Iterator[Pair | None]) -> Iterator[list[Pair | None]]:
    """Lists of at most WINDOW lines; what stands before a bad line comes before its error."""
    window: list[Pair | None] = []
    try:
        for pair in pairs:
            window.append(pair)
            if len(window) == WINDOW:
                yield window
                window = []
    except InputError:
        yield window
        raise
    yield window


@contextlib.contextmanager
def writer(output: Path | None) -> Iterator[Callable[[str], None]]:
    """A function that writes text into the file `output`, which appears when it is whole, or to standard output."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_output(output)) if output else standard_output()

        def write(text: str) -> None:
            with writing(output):
                file.write(text)

        yield write
        with writing(output):
            file.flush()


def score_pairs(
    translator: Translator, pairs: Iterable[Pair], alignments: bool = False, batch_tokens: int = BATCH_TOKENS
) -> list[Score]:
    """The score of each (source, target), in order; in batches of like length, at most `batch_tokens` each.

    A source or a target without a token is scored as any other: what is left of it is its end symbol.

    Raises:
        InputError: a pair that is not two strings.
    """
    text, runtime = translator.text, translator.runtime
    sources: list[list[int]] = []
    targets: list[list[int]] = []
    cut: list[bool] = []
    for i, pair in enumerate(pairs):
        fits = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not fits or not all(isinstance(side, str) for side in pair):
            raise InputError(f"pair {i} must be (source, target), two strings, found {pair!r}")
        source, was_cut = golden.encode(text, pair[0], translator.max_source)
        sources.append(source)
        targets.append(text.target.encode(pair[1]))
        cut.append(was_cut)
    longer = {i: max(source, [*targets[i], EOS], key=len) for i, source in enumerate(sources)}
    found: dict[int, Score] = {}
    for indices in by_length(longer, batch_tokens, runtime.max_batch):
        some, along = [sources[i] for i in indices], [targets[i] for i in indices]
        for i, (log_probs, weights) in zip(indices, _forced(runtime, some, along, alignments), strict=True):
            found[i] = Score(
                tuple(text.target.pieces(targets[i])),
                tuple(map(float, log_probs)),
                tuple(text.source.pieces(sources[i])),
                targets[i].count(UNK),
                cut[i],
                weights,
            )
    return [found[i] for i in range(len(sources))]


def _forced(
    runtime: Runtime, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], alignments: bool
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Of each target, in one batch: the log-probabilities (tgt + 1) of its tokens and its end symbol, and the weights
    (tgt + 1, src) with which they attend."""
    ended = [(*target, EOS) for target in targets]
    rows = np.arange(len(ended))
    said: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for step, (decoding, outputs) in enumerate(forced(runtime, sources, targets)):
        expected = [target[min(step, len(target) - 1)] for target in ended]
        said.append(runtime.numpy(outputs["log_probs"])[rows, 0, expected])
        if alignments and decoding.aligned:
            weights.append(runtime.numpy(outputs["alignment"])[:, 0])
    for i, target in enumerate(ended):
        steps = len(target)
        aligned = np.stack([step[i, : len(sources[i])] for step in weights[:steps]]) if weights else None
        yield np.array([step[i] for step in said[:steps]], np.float64), aligned
