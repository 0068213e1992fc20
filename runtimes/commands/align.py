"""`edge-attn align`: the source token that each token of a target attends to.

The decoder is fed the tokens of the target (teacher forcing). The weights are those of its attention as it scores each
of them, as in `edge-attn score`. For the model's own translations, `translate` returns the alignment of the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_attn.config.runtime import DEFAULT, RuntimeOptions
from edge_attn.runtimes.commands.arguments import check_model_and_corpus, open_model
from edge_attn.runtimes.commands.bad_lines import BadLines
from edge_attn.runtimes.commands.line_io import open_output
from edge_attn.runtimes.commands.score import ScoredLine, UnscoredLine, score_lines
from edge_attn.runtimes.tasks.alignment import check_attention
from edge_attn.runtimes.tasks.scoring import Score
from edge_attn.text.lines import STANDARD_STREAM
from edge_attn.text.pipeline import Text

DIGITS = 6
"""Decimal places of a weight in jsonl."""


def align(
    bundle: Path,
    corpus: Path,
    output: Path | None = None,
    format: str = "pharaoh",
    separator: str = "\t",
    runtime: str = "ort-cpu",
    options: RuntimeOptions = DEFAULT,
    columns: Sequence[int] = (),
    on_error: str | None = None,
    words: bool = False,
) -> None:
    """Align each pair of `corpus`, in order.

    Args:
        bundle: a bundle, or a checkpoint, which runs on torch.
        corpus: file of pairs, one per line; .gz is decompressed.
        output: output file; None is standard output.
        format: `pharaoh` has `i-j` for each target token j and the source token i that it attends to most, without end
            symbols; an empty line stays empty. `jsonl` has one object for each line that is not empty, with the weights
            (target tokens + 1, source tokens + 1) including the end symbols.
        separator: text between source and target.
        runtime: runtime of a bundle.
        options: options of the runtime.
        columns: columns of source and target, as for `iter_pairs`.
        on_error: `stop` or `skip` at a line that is not a pair; None is the default of `BadLines`.
        words: align words, separated by white space, instead of tokens. The weights stay those of tokens.

    Raises:
        UsageError: the model has no attention.
        InputError: a line is not a pair. The lines before it are written to standard output first.
    """
    check_model_and_corpus(bundle, corpus)
    translator = open_model(bundle, runtime, options)
    check_attention(translator.runtime, "align")
    format_line = _pharaoh_line if format == "pharaoh" else _json_line
    text = translator.text if words else None
    bad_lines = BadLines(on_error, is_stream=corpus == STANDARD_STREAM)
    with open_output(output) as writer:
        for line in score_lines(translator, corpus, separator, columns, bad_lines, alignments=True):
            writer.write(format_line(line, text))
    bad_lines.raise_errors()


def _links(score: Score, text: Text | None) -> str:
    """Return the links of tokens or, with the tokenizers, of words."""
    return score.pharaoh() if text is None else score.word_pharaoh(text)


def _pharaoh_line(line: ScoredLine | UnscoredLine, text: Text | None) -> str:
    return "\n" if isinstance(line, UnscoredLine) else _links(line.score, text) + "\n"


def _json_line(line: ScoredLine | UnscoredLine, text: Text | None) -> str:
    if isinstance(line, UnscoredLine):
        return line.json()
    score = line.score
    assert score.alignment is not None  # check_attention passed, and score_lines computes alignments
    weights = score.alignment.astype(float).round(DIGITS).tolist()
    return line.json(tokens=score.tokens, alignment=_links(score, text), weights=weights)
