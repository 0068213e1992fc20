"""Options that several commands share."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import click

from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.options import LENGTH_PENALTIES, SearchConfig
from edge_attn.errors import UsageError
from edge_attn.registry import PRECISIONS, RUNTIMES, suggestion


class Choice(click.Choice[str]):
    """Choice that completes in a shell, and whose error names the entry that is most like the value."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Return the error message for a value that is not a choice."""
        return f"{value!r} is not one of {', '.join(self.choices)}{suggestion(str(value), self.choices)}"


PATH = click.Path(path_type=Path, readable=False)  # an unreadable file is bad input (4), not a usage error (2)

SEARCH_HELP = {
    "length_penalty": "Exponent alpha of the length penalty.",
    "length_penalty_kind": "Divisor of the log-probability: 1 (none), length ** alpha (avg) or "
    "((5 + length) / 6) ** alpha (wu).",
    "coverage_penalty": "Weight beta of the coverage penalty (Wu et al. 2016): lowers the score of hypotheses that "
    "attend little to parts of the source.",
    "repetition_penalty": "Factor on the log-probability of tokens that the hypothesis already contains; values above "
    "1 discourage repetition, 1 is off.",
    "no_repeat_ngram": "Size of the n-grams that may not repeat; 0 is off.",
    "min_length": "Minimum number of tokens, without the end symbol.",
    "max_length": "Maximum number of tokens, including the end symbol.",
    "groups": "Number of groups in diverse beam search. Duplicates are removed, so fewer than --n-best translations "
    "may be returned.",
    "diversity": "Penalty on a token for each hypothesis of an earlier group that has it at the same position.",
    "sample": "Sample tokens instead of searching.",
    "temperature": "Sampling temperature; lower values favor likely tokens.",
    "top_k": "Sample only from the k most likely tokens; 0 is off.",
    "top_p": "Sample only from the smallest set of tokens whose probabilities sum to p; 1 is off.",
    "seed": "Random seed of --sample; the same seed and line give the same samples.",
}


threads_option = click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads of the runtime.")
cache_dir_option = click.option(
    "--cache-dir",
    type=PATH,
    help="Folder for compiled TensorRT engines.  [default: edge-attn in the user's cache folder]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _parse_overrides(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """Return the bounds by name.

    Raises:
        UsageError: a value is not a number.
    """
    overrides = {}
    for text in values:
        name, _, value = text.partition("=")
        try:
            overrides[name] = float(value)
        except ValueError:
            raise UsageError(f"--override takes LEVEL.NAME=VALUE with a number, got {text!r}") from None
    return overrides


override_option = click.option(
    "--override",
    "overrides",
    multiple=True,
    metavar="LEVEL.NAME=VALUE",
    callback=_parse_overrides,
    help="Change a bound for this run; repeatable.",
)


def echo_result(result: Any, as_json: bool) -> None:
    """Print the result of a verb, as text or as JSON."""
    click.echo(result.json() if as_json else result, nl=not as_json)


def search_options(command: Any) -> Any:
    """Add the options of the search.

    `command` receives them as one SearchConfig, `config`, together with those of its own options that are fields of
    SearchConfig. It receives `suppress` as text, because only the model can look up the tokens.
    """
    fields = {field.name for field in dataclasses.fields(SearchConfig)} - {"suppress"}

    @functools.wraps(command)
    def run(*args: Any, beam: int | None, sample: bool, **options: Any) -> Any:
        beam = beam if beam is not None else 1 if sample else SearchConfig.beam
        search = {name: options.pop(name) for name in fields & options.keys()}
        return command(*args, config=SearchConfig(beam=beam, sample=sample, **search), **options)

    run = click.option("--suppress", multiple=True, metavar="TOKEN", help="Token never to generate; repeatable.")(run)
    for name, text in reversed(SEARCH_HELP.items()):
        default = getattr(SearchConfig, name)
        kind = Choice(LENGTH_PENALTIES) if name == "length_penalty_kind" else type(default)
        shown = {"is_flag": True} if name == "sample" else {"type": kind, "show_default": True}
        run = click.option(f"--{name.replace('_', '-')}", default=default, help=text, **shown)(run)
    return click.option(
        "-b",
        "--beam",
        type=int,
        help=f"Beam size; 1 is greedy search.  [default: {SearchConfig.beam}; with --sample 1]",
    )(run)


def runtime_options(command: Any) -> Any:
    """Add the options of the runtime.

    `command` receives the name as `runtime` and the other options as one RuntimeOptions, `options`.
    """

    @functools.wraps(command)
    def run(
        *args: Any,
        threads: int | None,
        precision: str,
        allow_fallback: bool,
        cache_dir: Path | None,
        max_run_seconds: float,
        **options: Any,
    ) -> Any:
        runtime_options = RuntimeOptions(threads, precision, allow_fallback, cache_dir, max_run_seconds)
        return command(*args, options=runtime_options, **options)

    for option in (
        click.option(
            "--max-run-seconds",
            type=float,
            default=RuntimeOptions.max_run_seconds,
            show_default=True,
            help="ONNX Runtime: time limit of one run of a graph, such as one with an endless loop.",
        ),
        cache_dir_option,
        click.option("--allow-fallback", is_flag=True, help="ort-cuda: run on the CPU if CUDA is missing."),
        threads_option,
        click.option(
            "--precision",
            type=Choice(PRECISIONS),
            default=RuntimeOptions.precision,
            show_default=True,
            help="Precision of the graphs. Other precisions than fp32 need graphs that `optimize` wrote.",
        ),
        click.option(
            "--runtime", type=Choice(RUNTIMES), default="ort-cpu", show_default=True, help="Runtime of the model."
        ),
    ):
        run = option(run)
    return run


separator_option = click.option("--separator", default="\t", help="Text between source and target.  [default: a tab]")

on_error_option = click.option(
    "--on-error",
    type=Choice(["stop", "skip"]),
    help="At a line that cannot be read: stop, or skip it with a warning and an empty line of output.  [default: stop; "
    "of standard input, skip, and exit code 4 at the end]",
)


def _columns(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the two numbers of `--columns`."""
    numbers = value.split(",") if value else []
    if value is not None and (len(numbers) != 2 or not all(n.strip().isdecimal() and int(n) > 0 for n in numbers)):
        raise click.BadParameter(f"{value!r} is not two column numbers, as 1,2", ctx, parameter)
    return tuple(map(int, numbers))


columns_option = click.option(
    "--columns",
    callback=_columns,
    metavar="SOURCE,TARGET",
    help="Columns of source and target.  [default: 1,2 of lines with two columns, or with three]",
)


def pair_options(command: Any) -> Any:
    """Add the arguments and options of a command that reads pairs of sentences and writes one line for each."""
    for option in (
        on_error_option,
        columns_option,
        separator_option,
        click.option("-o", "--output", type=PATH, help="Output file.  [default: standard output]"),
        click.argument("corpus", metavar="TSV", type=PATH),
        click.argument("bundle", type=PATH),
    ):
        command = option(command)
    return command
