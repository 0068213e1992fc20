"""`edge-attn align`: which source token each token of a given translation attends to.

The decoder is fed the given tokens (teacher forcing); the weights are those of its attention when it scores each, as in
`edge-attn score`. The alignment of a translation that the model made itself is the one that `translate` tells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_attn.config.runtime import RuntimeOptions
from edge_attn.runtimes.base import DEFAULT
from edge_attn.runtimes.commands.score import Line, each_line, jsonl, writer
from edge_attn.runtimes.tasks.alignment import check_attention
from edge_attn.runtimes.tasks.scoring import Score
from edge_attn.runtimes.tasks.translation import Translator

DIGITS = 6
"""Of a weight in jsonl."""


def align(
    bundle: Path,
    corpus: Path,
    output: Path | None = None,
    format: str = "pharaoh",
    separator: str = "\t",
    runtime: str = "ort-cpu",
    options: RuntimeOptions = DEFAULT,
) -> None:
    """Aligns each pair of `corpus`, into `output` (standard output): a line for a line, in order.

    Pharaoh: `i-j` for each target token j and the source token i that it attends to most, the end symbols left out; an
    empty line has an empty line. jsonl: the weights too, a row for each target token and its end symbol, a column for
    each source token and its end symbol; an empty line has none.

    Raises:
        UsageError: the model has no attention.
        InputError: a line that is no pair, named by its number; those before it are answered.
    """
    translator = Translator.open(bundle, runtime, options)
    check_attention(translator.runtime, "align")
    with writer(output) as write:
        for line in each_line(translator, corpus, separator, alignments=True):
            write(_pharaoh(line) if format == "pharaoh" else jsonl(line, _content))


def _pharaoh(line: Line | None) -> str:
    return "\n" if line is None else line.score.pharaoh() + "\n"


def _content(found: Score) -> dict[str, Any]:
    assert found.alignment is not None  # the model has attention, and alignments were asked for
    rows = found.alignment.astype(float).round(DIGITS).tolist()
    return {"tokens": found.tokens, "alignment": found.pharaoh(), "weights": rows}
