"""The command line: one verb a command, each resolved from the table when it is called. Only click is imported here.

Exit codes: 0 holds or done, 1 parity does not hold, 2 usage, 3 not tested, 4 bad input or bundle, 70 a fault of ours;
130 interrupted, 141 whoever read the output went away.
Text goes out as UTF-8, whatever the locale.
"""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from edge_attn import __version__
from edge_attn.cli.options import search_options
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding.options import SearchConfig
from edge_attn.errors import EdgeAttnError, InputError, UsageError
from edge_attn.registry import PRECISIONS, RUNTIMES, TARGETS, VERBS, resolve

PATH = click.Path(path_type=Path, readable=False)  # what cannot be read is bad input, not a wrong option


class Verbs(click.Group):
    """Errors become one sentence and their exit code; an interruption has the shell's code, because 1 is a verdict."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeAttnError as error:
            if error.exit_code == 70:
                raise
            click.echo(f"edge-attn: {error}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:  # whoever read the output has enough of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(128 + signal.SIGPIPE)
        except KeyboardInterrupt:
            ctx.exit(128 + signal.SIGINT)


def _verb(name: str) -> Any:
    return resolve("verb", VERBS, name)


def _json(content: Any) -> str:
    import json  # not for --help

    return json.dumps(content, indent=1, sort_keys=True)


_threads = click.option("--threads", type=click.IntRange(min=1), help="Threads of the runtime on the CPU.")
_cache_dir = click.option("--cache-dir", type=PATH, help="Of engines.  [default: edge-attn in the user's cache folder]")


def _runtime_options(command: Any) -> Any:
    """Options of how a bundle is run; `command` gets `runtime`, and the rest as one RuntimeOptions, `options`."""

    @functools.wraps(command)
    def run(
        *arguments: Any,
        threads: int | None,
        precision: str,
        allow_fallback: bool,
        cache_dir: Path | None,
        **others: Any,
    ) -> Any:
        return command(*arguments, options=RuntimeOptions(threads, precision, allow_fallback, cache_dir), **others)

    for option in (
        _cache_dir,
        click.option("--allow-fallback", is_flag=True, help="ort-cuda: run on the CPU where CUDA is missing."),
        _threads,
        click.option("--precision", default=RuntimeOptions.precision, show_default=True, help=_one_of(PRECISIONS)),
        click.option("--runtime", default="ort-cpu", show_default=True, help=_one_of(RUNTIMES)),
    ):
        run = option(run)
    return run


def _one_of(names: Iterable[str]) -> str:
    return f"One of {', '.join(names)}."


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edge-attn")
def cli() -> None:
    """An attention seq2seq model from PyTorch to the edge, and the proof that it still says the same thing."""


@cli.command()
@click.argument("config", type=PATH)
@click.option("--out", required=True, type=PATH, help="The checkpoint; a run that it holds is gone on with.")
@click.option("--data", type=PATH, help="Folder of the configuration's files.  [default: the configuration's]")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; the same number gives the same weights.")
def train(config: Path, out: Path, data: Path | None, threads: int | None) -> None:
    """Train a model from the TOML file CONFIG (also under torchrun)."""
    _verb("train")(config, out, data, threads)


@cli.command()
@click.argument("checkpoint", type=PATH)
@click.option("--out", required=True, type=PATH, help="The bundle: a folder, or a zip if it ends in .zip.")
@click.option(
    "--candidates", type=int, default=16, show_default=True, help="Best tokens a step; a beam is at most one less."
)
@click.option(
    "--input", "sentences", type=PATH, help="Source sentences for the golden data.  [default: the checkpoint's]"
)
@click.option("--force", is_flag=True, help="Replace a bundle.")
def export(checkpoint: Path, out: Path, candidates: int, sentences: Path | None, force: bool) -> None:
    """Export CHECKPOINT to a bundle that runs without torch, verified before it is written."""
    manifest = _verb("export")(checkpoint, out, candidates, sentences, force)
    levels = ", ".join(f"{level} {status}" for level, status in manifest.verification["levels"].items())
    click.echo(f"{out}: {len(manifest.graphs)} graphs, {levels} on {manifest.verification['provider']}")


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--input", type=PATH, help="One sentence a line.  [default: standard input]")
@click.option("--output", type=PATH, help="[default: standard output]")
@search_options
@click.option("--n-best", type=int, default=SearchConfig.n_best, show_default=True, help="Translations a line.")
@click.option("--alternatives", type=int, default=0, help="So many first tokens after the prefix, each completed.")
@click.option("--prefix", type=PATH, help="What the translation of each line begins with, whole words, a line each.")
@click.option("--format", type=click.Choice(["text", "jsonl", "moses"]), default="text", show_default=True)
@click.option("--alignments", type=PATH, help="Pharaoh alignments (i-j) of the tokens, a line each.")
@click.option("--replace-unknown", is_flag=True, help="For an unknown word, put the source word that it attends to.")
@click.option("--phrase-table", type=PATH, help="With --replace-unknown: what to put instead, as source<TAB>target.")
@_runtime_options
def translate(**given: Any) -> None:
    """Translate lines with BUNDLE (or a checkpoint, on torch), in order."""
    _verb("translate")(**given)


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--level", "levels", multiple=True, help="L1, L2, L3 or L5; may be given again.  [default: all four]")
@click.option("--reference", type=PATH, help="Compare with the live torch model of this checkpoint.")
@click.option("--input", "sentences", type=PATH, help="Sentences for --reference.  [default: the golden ones]")
@click.option("--override", "overrides", multiple=True, metavar="LEVEL.NAME=VALUE", help="Loosen a bound for this run.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--junit", type=PATH, help="Write the report as JUnit XML.")
@_runtime_options
@click.pass_context
def verify(
    ctx: click.Context, /, bundle: Path, overrides: tuple[str, ...], as_json: bool, junit: Path | None, **given: Any
) -> None:
    """Does BUNDLE say what the trained model said? Exit code 0: yes; 1: no; 3: it could not be tested."""
    report = _verb("verify")(bundle, overrides=dict(_override(text) for text in overrides), **given)
    click.echo(report.json() if as_json else str(report), nl=not as_json)
    if junit is not None:
        try:
            junit.write_text(report.junit(), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{junit} cannot be written: {error.strerror}") from error
    ctx.exit(report.exit_code)


def _override(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise UsageError(f"--override takes LEVEL.NAME=VALUE with a number, got {text!r}") from None


@cli.command()
@click.argument("model", type=PATH)
@click.argument("corpus", metavar="TSV", type=PATH)
@search_options
@click.option("--separator", default="\t", help="Between source and target.  [default: a tab]")
@click.option("--by-length", is_flag=True, help="Scores by source length; thin bins are filled with joined neighbours.")
@click.option("--against", type=PATH, help="A second model, side by side.")
@click.option("--picture", type=PATH, help="Write BLEU by source length as an SVG.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many distinct sources.")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
@_runtime_options
def evaluate(
    model: Path,
    corpus: Path,
    by_length: bool,
    against: Path | None,
    picture: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """BLEU and chrF of MODEL, a bundle or a checkpoint, on the pairs in TSV (also .gz)."""
    models = [model, against] if against else [model]
    found = [_verb("evaluate")(one, corpus, by_length=by_length or picture is not None, **given) for one in models]
    if picture is not None:
        resolve("picture", VERBS, "picture")(found, picture)
    if as_json:
        click.echo(_json([evaluation.content() for evaluation in found]))
    else:
        click.echo("\n\n".join(map(str, found)))


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def inspect(bundle: Path, as_json: bool) -> None:
    """What BUNDLE holds: graphs, ops, sizes, precision, provenance, verification record."""
    content = _verb("inspect")(bundle)
    click.echo(_json(content) if as_json else resolve("verb", VERBS, "show")(content))


@cli.command()
@click.option("--out", type=PATH, default=Path("edge-attn-demo"), show_default=True, help="Folder of what it makes.")
@_runtime_options
@click.pass_context
def demo(ctx: click.Context, /, out: Path, runtime: str, options: RuntimeOptions) -> None:
    """Export the embedded English-French model, verify it, translate, and draw its alignments."""
    ctx.exit(_verb("demo")(out, runtime, options, click.echo))


def _pair_options(command: Any) -> Any:
    for option in (
        click.option("--separator", default="\t", help="Between source and target.  [default: a tab]"),
        click.option("--output", type=PATH, help="[default: standard output]"),
        click.argument("corpus", metavar="TSV", type=PATH),
        click.argument("bundle", type=PATH),
    ):
        command = option(command)
    return command


@cli.command()
@_pair_options
@click.option("--format", type=click.Choice(["text", "jsonl"]), default="text", show_default=True)
@_runtime_options
def score(**given: Any) -> None:
    """Log-probability of each target in TSV (also .gz) by BUNDLE (or a checkpoint), per token, with perplexity.

    What they come to stands on standard error. A target is split into tokens anew: not always into those of which
    `translate` made it.
    """
    click.echo(_verb("score")(**given), err=True)


@cli.command()
@_pair_options
@click.option("--format", type=click.Choice(["pharaoh", "jsonl"]), default="pharaoh", show_default=True)
@_runtime_options
def align(**given: Any) -> None:
    """Source token that each target token in TSV (also .gz) attends to, by BUNDLE (or a checkpoint), as Pharaoh i-j.

    A target is split into tokens anew: not always into those of which `translate` made it.
    """
    _verb("align")(**given)


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--target", required=True, help=_one_of(TARGETS))
@click.option("--precision", default="fp32", show_default=True, help=_one_of(PRECISIONS))
@click.option("--min-version", help="Oldest version of the target that must read the graphs, as 10.3.")
@click.option("--calibration", type=PATH, help="Source sentences for int8's scales.  [default: the golden ones]")
@click.option("--profiles", type=PATH, help="TOML file of the batches and lengths that engines are built for.")
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    help="An op of ours that a plugin may serve, where the device measures that it is quicker; may be given again.",
)
@click.option("--build", is_flag=True, help="Build the engines here, and verify on them.")
@click.option("--max-build-minutes", type=float, help="Of an engine, at most.")
@click.option(
    "--force",
    is_flag=True,
    help="Make again what the bundle already holds; built as before, unless --profiles says all of that anew.",
)
@_threads
@_cache_dir
@click.pass_context
def optimize(ctx: click.Context, /, bundle: Path, **given: Any) -> None:
    """Make of BUNDLE's graphs those that one target runs best, verified before they are put into it.

    What BUNDLE holds already is made again only with --force. With --build alone it is built as it is; --profiles and
    --max-build-minutes then change how, and BUNDLE keeps them.
    """
    ctx.exit(_verb("optimize")(bundle, say=click.echo, **given))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool) -> None:
    """What this machine has for running bundles, what is wrong, and the command that puts it right."""
    machine = _verb("doctor")()
    click.echo(machine.json() if as_json else str(machine), nl=not as_json)
    ctx.exit(machine.exit_code)


@cli.group()
def cache() -> None:
    """The engines that were built on this machine."""


@cache.command("list")
@_cache_dir
def cache_list(cache_dir: Path | None) -> None:
    """Each engine: graph, versions, GPU, size, last use."""
    click.echo(_verb("cache list")(cache_dir))


@cache.command("clear")
@_cache_dir
def cache_clear(cache_dir: Path | None) -> None:
    """Delete every engine that nobody is building, and what ended builds left."""
    click.echo(_verb("cache clear")(cache_dir))


def main() -> None:
    """The entry point of the command `edge-attn`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        cli()
    except Exception:
        import traceback

        traceback.print_exc()
        click.echo("edge-attn: this is a fault of edge-attn, not of your input; please report it", err=True)
        sys.exit(70)


if __name__ == "__main__":
    main()
