"""`edge-attn score`: log-probability and perplexity of given translations."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import InputError
from edge_attn.runtimes.base import DEFAULT
from edge_attn.runtimes.commands.line_io import json_number, open_output, output_errors, standard_output
from edge_attn.runtimes.commands.translate import WINDOW
from edge_attn.runtimes.tasks.scoring import Pair, Score, perplexity, score_pairs
from edge_attn.runtimes.tasks.translation import Translator
from edge_attn.text.corpus import iter_pairs
from edge_attn.text.tokenizers import EOS, SPECIAL


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
        return perplexity(self.log_prob, self.tokens)

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
        "log_prob": json_number(found.log_prob),
        "perplexity": json_number(found.perplexity),
        "tokens": found.tokens,
        "log_probs": [json_number(value) for value in found.log_probs],
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
        for window in _windows(iter_pairs(corpus, separator)):
            scores = iter(_score(translator, [pair for pair in window if pair is not None], alignments))
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


def _score(translator: Translator, pairs: Sequence[Pair], alignments: bool) -> list[Score]:
    return score_pairs(translator.runtime, translator.text, translator.max_source, pairs, alignments)


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
            with output_errors(output):
                file.write(text)

        yield write
        with output_errors(output):
            file.flush()
