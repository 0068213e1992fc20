"""Commands that run a model on text: translate, score, align, evaluate."""

from __future__ import annotations

from typing import Any

import click

from edge_attn.cli.options import (
    PATH,
    Choice,
    columns_option,
    echo_result,
    json_option,
    on_error_option,
    pair_options,
    runtime_options,
    search_options,
    separator_option,
)
from edge_attn.decoding.options import SearchConfig
from edge_attn.registry import VERBS, resolve

WORDS_HELP = "Align words, which white space separates, instead of tokens."


@click.command(short_help="Translate sentences, or the lines of a text, in order.")
@click.argument("bundle", type=PATH)
@click.argument("sentences", metavar="[SENTENCE]...", nargs=-1)
@click.option("-i", "--input", type=PATH, help="Input file, one sentence per line.  [default: standard input]")
@click.option("-o", "--output", type=PATH, help="Output file.  [default: standard output]")
@search_options
@click.option("-n", "--n-best", type=int, default=SearchConfig.n_best, show_default=True, help="Translations per line.")
@click.option(
    "--alternatives",
    type=int,
    default=0,
    help="Show the N most likely continuations after --prefix, each completed by its own search; 0 is off.",
)
@click.option("--prefix", type=PATH, help="File with the beginning of each translation, in whole words, one per line.")
@click.option(
    "--format",
    type=Choice(["text", "jsonl", "moses"]),
    default="text",
    show_default=True,
    help="Output format; moses is the n-best list of Moses, which numbers the inputs.",
)
@click.option("--alignments", type=PATH, help="Output file for token alignments in Pharaoh format (i-j), one per line.")
@click.option("--words", is_flag=True, help=WORDS_HELP)
@click.option(
    "--split-sentences",
    is_flag=True,
    help="Translate each sentence of a line by itself, and join the translations. Needs the extra `split`.",
)
@click.option("--language", default="en", show_default=True, help="With --split-sentences: language of the input.")
@click.option("--replace-unknown", is_flag=True, help="Replace unknown words by the source word they attend to most.")
@click.option(
    "--phrase-table", type=PATH, help="With --replace-unknown: file of replacements, one source<TAB>target per line."
)
@on_error_option
@runtime_options
def translate(**arguments: Any) -> None:
    """Translate each SENTENCE, or the lines of a file or of standard input, in order.

    BUNDLE can be a checkpoint, which runs on torch.
    """
    resolve("verb", VERBS, "translate")(**arguments)


@click.command()
@pair_options
@click.option("--format", type=Choice(["text", "jsonl"]), default="text", show_default=True, help="Output format.")
@runtime_options
def score(**arguments: Any) -> None:
    """Compute log-probabilities and perplexity of the targets in TSV.

    BUNDLE can be a checkpoint, which runs on torch. TSV can be compressed (.gz). The totals are printed on standard
    error.

    The target text is tokenized again. The tokens can differ from those that `translate` generated.
    """
    click.echo(resolve("verb", VERBS, "score")(**arguments), err=True)


@click.command()
@pair_options
@click.option(
    "--format", type=Choice(["pharaoh", "jsonl"]), default="pharaoh", show_default=True, help="Output format."
)
@click.option("--words", is_flag=True, help=WORDS_HELP)
@runtime_options
def align(**arguments: Any) -> None:
    """Align the tokens of each pair in TSV by attention weights.

    Each target token j is aligned with the source token i that it attends to most, in Pharaoh format (i-j). BUNDLE can
    be a checkpoint, which runs on torch. TSV can be compressed (.gz).

    The target text is tokenized again. The tokens can differ from those that `translate` generated.
    """
    resolve("verb", VERBS, "align")(**arguments)


@click.command()
@click.argument("model", type=PATH)
@click.argument("corpus", metavar="TSV", type=PATH)
@search_options
@separator_option
@columns_option
@click.option("--by-length", is_flag=True, help="Score by source length; small bins are filled with joined neighbors.")
@click.option(
    "--references",
    type=Choice(("first", "all")),
    default="first",
    show_default=True,
    help="Score with the first reference of each source, or with all of them.",
)
@click.option("--against", type=PATH, help="Second model, to be evaluated too and compared by a paired bootstrap test.")
@click.option("--picture", type=PATH, help="Output file for a plot of BLEU by source length, as SVG.")
@click.option("--limit", type=click.IntRange(min=1), help="Number of distinct sources to use.  [default: all]")
@json_option
@runtime_options
def evaluate(as_json: bool, **arguments: Any) -> None:
    """Compute BLEU and chrF of MODEL on the pairs in TSV.

    MODEL is a bundle or a checkpoint, which runs on torch. TSV can be compressed (.gz). A source that occurs several
    times is translated once, and its targets are its references.
    """
    echo_result(resolve("verb", VERBS, "evaluate")(**arguments), as_json)
