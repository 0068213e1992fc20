"""`edge-attn score`: log-probability and perplexity of the targets of a corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.errors import InputError
from edge_attn.runtimes.commands.arguments import check_model_and_corpus, open_model
from edge_attn.runtimes.commands.bad_lines import BadLines
from edge_attn.runtimes.commands.line_io import json_line, json_number, line_bar, open_output, warn, windows
from edge_attn.runtimes.tasks.scoring import LONGEST_TARGET, Score, perplexity, score_pairs
from edge_attn.runtimes.tasks.translation import Translator
from edge_attn.text.corpus import Pair, scan_pairs
from edge_attn.text.lines import STANDARD_STREAM
from edge_attn.text.tokenizers import EOS, SPECIAL


@dataclass(frozen=True)
class ScoreTotal:
    """Sum of the scores of a corpus."""

    pairs: int = 0
    tokens: int = 0
    """Number of target tokens, including the end symbols."""
    log_prob: float = 0.0
    unknown: int = 0
    """Number of target tokens that the vocabulary does not contain."""
    cut: int = 0
    """Number of sources that were truncated to the longest input of the model."""

    def __add__(self, score: Score) -> ScoreTotal:
        return ScoreTotal(
            self.pairs + 1,
            self.tokens + len(score.log_probs),
            self.log_prob + score.log_prob,
            self.unknown + score.unknown,
            self.cut + score.cut,
        )

    @property
    def perplexity(self) -> float:
        """Perplexity per token over the whole corpus."""
        return perplexity(self.log_prob, self.tokens)

    def __str__(self) -> str:
        parts = [
            f"{self.pairs} pairs, {self.tokens} tokens with the end symbols: log-probability {self.log_prob:.4f}, "
            f"perplexity {self.perplexity:.6g} per token"
        ]
        if self.unknown:
            parts.append(f"{self.unknown} of the target tokens are unknown to the model, and were scored as <unk>")
        if self.cut:
            parts.append(f"{self.cut} of the sources are longer than the model reads, and were truncated")
        return "; ".join(parts)


@dataclass(frozen=True)
class ScoredLine:
    """Pair of sentences in one line of a corpus, with its score."""

    number: int
    source: str
    target: str
    score: Score

    def json(self, **content: object) -> str:
        """Return a line of JSONL with the pair and `content`."""
        pair = {
            "line": self.number,
            "source": self.source,
            "target": self.target,
            "source_tokens": self.score.source_tokens,
            "cut": self.score.cut,
        }
        return json_line({**pair, **content})


def score(
    bundle: Path,
    corpus: Path,
    output: Path | None = None,
    format: str = "text",
    separator: str = "\t",
    runtime: str = "ort-cpu",
    options: RuntimeOptions = DEFAULT,
    columns: Sequence[int] = (),
    on_error: str | None = None,
) -> ScoreTotal:
    """Compute the log-probabilities of each target of `corpus`, in order.

    Args:
        bundle: a bundle, or a checkpoint, which runs on torch.
        corpus: file of pairs, one per line; .gz is decompressed.
        output: output file; None is standard output.
        format: `text` has log-probability, perplexity and the tokens with their log-probabilities, separated by tabs;
            an empty line stays empty. `jsonl` has one object for each line that is not empty.
        separator: text between source and target.
        runtime: runtime of a bundle.
        options: options of the runtime.
        columns: columns of source and target, as for `iter_pairs`.
        on_error: `stop` or `skip` at a line that is not a pair; None is the default of `BadLines`.

    Raises:
        InputError: a line is not a pair. The lines before it are written to standard output first.
    """
    check_model_and_corpus(bundle, corpus)
    translator = open_model(bundle, runtime, options)
    total = ScoreTotal()
    format_line = _text_line if format == "text" else _json_line
    bad_lines = BadLines(on_error, is_stream=corpus == STANDARD_STREAM)
    with open_output(output) as writer:
        for line in score_lines(translator, corpus, separator, columns, bad_lines):
            if isinstance(line, ScoredLine):
                total += line.score
            writer.write(format_line(line))
    bad_lines.raise_errors()
    return total


@dataclass(frozen=True)
class UnscoredLine:
    """Empty line of a corpus, or one that could not be read."""

    number: int
    error: InputError | None = None
    """Reason why the line could not be read; None if it is empty."""

    def json(self) -> str:
        """Return a line of JSONL with the error, and nothing for an empty line."""
        return "" if self.error is None else json_line({"line": self.number, "error": str(self.error)})


def score_lines(
    translator: Translator,
    corpus: Path,
    separator: str,
    columns: Sequence[int],
    bad_lines: BadLines,
    alignments: bool = False,
) -> Iterator[ScoredLine | UnscoredLine]:
    """Yield each line of `corpus` with its score, in bounded memory.

    Truncated sources cause a warning on standard error. Progress is shown there if it is a terminal.

    Args:
        translator: the model.
        corpus: file of pairs, one per line; .gz is decompressed.
        separator: text between source and target.
        columns: columns of source and target, as for `iter_pairs`.
        bad_lines: whether a bad line is raised.
        alignments: compute the attention weights too.

    Raises:
        InputError: a line is not a pair. The lines before it are yielded first.
    """
    number = 0
    with line_bar(corpus) as shown:
        for window in windows(_scorable_pairs(translator, corpus, separator, columns, bad_lines.stop)):
            pairs = [pair for pair in window if isinstance(pair, tuple)]
            scores = iter(score_pairs(translator.runtime, translator.text, translator.max_source, pairs, alignments))
            for pair in window:
                number += 1
                if not isinstance(pair, tuple):
                    if pair is not None:
                        bad_lines.report(pair)
                    yield UnscoredLine(number, pair)
                    continue
                score = next(scores)
                if score.cut:
                    tokens = len(score.source_tokens) - 1
                    warn(f"line {number}: only the first {tokens} of {score.source_length} source tokens were read")
                yield ScoredLine(number, *pair, score)
            shown.update(len(window))


def _scorable_pairs(
    translator: Translator, corpus: Path, separator: str, columns: Sequence[int], stop: bool
) -> Iterator[Pair | InputError | None]:
    """Yield the lines of a corpus as `scan_pairs`, where a target of too many tokens is an error too."""
    for number, pair in enumerate(scan_pairs(corpus, separator, columns, stop), 1):
        tokens = len(translator.text.target.encode(pair[1])) if isinstance(pair, tuple) else 0
        if tokens <= LONGEST_TARGET:
            yield pair
            continue
        error = InputError(
            f"{corpus}, line {number}: the target has {tokens} tokens, at most {LONGEST_TARGET} can be scored; "
            f"put one sentence on a line"
        )
        if stop:
            raise error
        yield error


def _text_line(line: ScoredLine | UnscoredLine) -> str:
    if isinstance(line, UnscoredLine):
        return "\n"
    score = line.score
    tokens = " ".join(
        f"{''.join('▁' if character.isspace() else character for character in token)}:{log_prob:.4f}"
        for token, log_prob in zip((*score.tokens, SPECIAL[EOS]), score.log_probs, strict=True)
    )
    return f"{score.log_prob:.4f}\t{score.perplexity:.6g}\t{tokens}\n"


def _json_line(line: ScoredLine | UnscoredLine) -> str:
    if isinstance(line, UnscoredLine):
        return line.json()
    score = line.score
    return line.json(
        log_prob=json_number(score.log_prob),
        perplexity=json_number(score.perplexity),
        tokens=score.tokens,
        log_probs=[json_number(log_prob) for log_prob in score.log_probs],
        unknown=score.unknown,
    )
