"""The options of the command line that say how to search: a row each. Of ours, only the configuration is imported."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import click

from edge_attn.decoding.options import LENGTH_PENALTIES, SearchConfig

HELP = {
    "length_penalty": "alpha: the power that --length-penalty-kind tells of.",
    "length_penalty_kind": "The score is the log-probability, divided by 1 (none), by length ** alpha (avg), or by "
    "((5 + length) / 6) ** alpha (wu).",
    "coverage_penalty": "beta of Wu et al. 2016: a lower score for source words that were not attended to.",
    "repetition_penalty": "Log-probabilities of tokens that came before count so many times.",
    "no_repeat_ngram": "No sequence of so many tokens comes twice; 0: any may.",
    "min_length": "Tokens, at least, the end symbol not counted.",
    "max_length": "Tokens, at most, the end symbol counted.",
    "groups": "Parts of the beam that keep away from each other's tokens, by --diversity; "
    "what two of them find comes once, so fewer than --n-best may come.",
    "diversity": "What a token costs for each hypothesis of an earlier group that has it.",
    "sample": "Draw tokens in place of searching for them.",
    "temperature": "With --sample: below 1 the likely tokens come more often, above 1 less.",
    "top_k": "With --sample: only from so many likely tokens; 0: from all.",
    "top_p": "With --sample: only from the likely tokens that make up so much probability.",
    "seed": "With --sample: the same seed draws the same tokens, for equal lines too.",
}


def search_options(command: Any) -> Any:
    """`command` gets `config`, of these options and whichever others of its own a SearchConfig has; and `suppress`, as
    text."""
    known = {field.name for field in dataclasses.fields(SearchConfig)} - {"suppress"}

    @functools.wraps(command)
    def run(*arguments: Any, beam: int | None, sample: bool, **given: Any) -> Any:
        beam = beam if beam is not None else 1 if sample else SearchConfig.beam
        chosen = {name: given.pop(name) for name in known & given.keys()}
        return command(*arguments, config=SearchConfig(beam=beam, sample=sample, **chosen), **given)

    run = click.option("--suppress", multiple=True, metavar="TOKEN", help="One that never comes; may be given again.")(
        run
    )
    for name, said in reversed(HELP.items()):
        default = getattr(SearchConfig, name)
        kind = click.Choice(LENGTH_PENALTIES) if name == "length_penalty_kind" else type(default)
        shown = {"is_flag": True} if name == "sample" else {"type": kind, "show_default": True}
        run = click.option(f"--{name.replace('_', '-')}", default=default, help=said, **shown)(run)
    return click.option("--beam", type=int, help=f"1 is greedy.  [default: {SearchConfig.beam}; with --sample 1]")(run)
