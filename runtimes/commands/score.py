"""`edge-attn score`: log-probability and perplexity of the targets of a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.runtimes.commands.arguments import check_model_and_corpus, open_model
from edge_attn.runtimes.commands.line_io import json_line, json_number, line_bar, open_output, warn, windows
from edge_attn.runtimes.tasks.scoring import Score, perplexity, score_pairs
from edge_attn.runtimes.tasks.translation import Translator
from edge_attn.text.corpus import iter_pairs
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

    Raises:
        InputError: a line is not a pair. The lines before it are written to standard output first.
    """
    check_model_and_corpus(bundle, corpus)
    translator = open_model(bundle, runtime, options)
    total = ScoreTotal()
    format_line = _text_line if format == "text" else _json_line
    with open_output(output) as writer:
        for line in score_lines(translator, corpus, separator):
            if line is not None:
                total += line.score
            writer.write(format_line(line))
    return total


def score_lines(
    translator: Translator, corpus: Path, separator: str = "\t", alignments: bool = False
) -> Iterator[ScoredLine | None]:
    """Yield each line of `corpus` with its score, or None for an empty line, in bounded memory.

    Truncated sources cause a warning on standard error. Progress is shown there if it is a terminal.

    Args:
        translator: the model.
        corpus: file of pairs, one per line; .gz is decompressed.
        separator: text between source and target.
        alignments: compute the attention weights too.

    Raises:
        InputError: a line is not a pair. The lines before it are yielded first.
    """
    number = 0
    with line_bar(corpus) as shown:
        for window in windows(iter_pairs(corpus, separator)):
            pairs = [pair for pair in window if pair is not None]
            scores = iter(score_pairs(translator.runtime, translator.text, translator.max_source, pairs, alignments))
            for pair in window:
                number += 1
                if pair is None:
                    yield None
                    continue
                pair_score = next(scores)
                if pair_score.cut:
                    warn(f"line {number} has more than {translator.max_source} source tokens; the source was truncated")
                yield ScoredLine(number, *pair, pair_score)
            shown.update(len(window))


def _text_line(line: ScoredLine | None) -> str:
    if line is None:
        return "\n"
    score = line.score
    tokens = " ".join(
        f"{''.join('▁' if character.isspace() else character for character in token)}:{log_prob:.4f}"
        for token, log_prob in zip((*score.tokens, SPECIAL[EOS]), score.log_probs, strict=True)
    )
    return f"{score.log_prob:.4f}\t{score.perplexity:.6g}\t{tokens}\n"


def _json_line(line: ScoredLine | None) -> str:
    if line is None:
        return ""
    score = line.score
    return line.json(
        log_prob=json_number(score.log_prob),
        perplexity=json_number(score.perplexity),
        tokens=score.tokens,
        log_probs=[json_number(log_prob) for log_prob in score.log_probs],
        unknown=score.unknown,
    )
