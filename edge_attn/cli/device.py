"""Commands for bundles and machines: verify, inspect, optimize, doctor, cache, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge_attn.cli.options import (
    PATH,
    Choice,
    cache_dir_option,
    echo_result,
    json_option,
    override_option,
    runtime_options,
    threads_option,
)
from edge_attn.cli.verbosity import is_verbose
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.registry import PRECISIONS, TARGETS, VERBS, import_object, resolve


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--level",
    "levels",
    type=Choice(("L1", "L2", "L3", "L5")),
    multiple=True,
    help="L1 encoder, L2 step, L3 search, L5 reruns; repeatable.  [default: all four]",
)
@click.option("--reference", type=PATH, help="Compare with this checkpoint, run on torch, instead of the golden data.")
@click.option("--input", "sentences", type=PATH, help="Sentences for --reference.  [default: those of the golden data]")
@override_option
@json_option
@click.option("--junit", type=PATH, help="Output file for the report as JUnit XML.")
@click.option("--summary", type=PATH, help="Output file for the verdict and its figures as Markdown.")
@runtime_options
@click.pass_context
def verify(ctx: click.Context, /, junit: Path | None, summary: Path | None, **arguments: Any) -> None:
    """Verify BUNDLE against the results of its trained model.

    Exit code 0: parity holds. 1: it does not hold. 3: it could not be tested.

    --verbose shows every bound. The reports of --json, --junit and --summary are also written when the bundle cannot be
    verified: their verdict is then "error", with its reason.
    """
    verify_and_report = import_object("edge_attn.runtimes.verification.outputs:verify_and_report")
    files = {"junit": junit, "summary": summary}
    ctx.exit(verify_and_report(files=files, verbose=is_verbose(), log=click.echo, **arguments))


@click.command()
@click.argument("bundle", type=PATH)
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show the model of BUNDLE, its limits, graphs and records.

    --verbose adds ops, build settings, provenance and the SHA-256 of each file.
    """
    inspection = resolve("verb", VERBS, "inspect")(bundle)
    echo_result(inspection.details() if is_verbose() and not as_json else inspection, as_json)


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--target", type=Choice(TARGETS), required=True, help="Target to optimize for.")
@click.option(
    "--precision", type=Choice(PRECISIONS), default="fp32", show_default=True, help="Precision of the optimized graphs."
)
@click.option("--min-version", help="Oldest version of the target that must load the graphs, such as 10.3.")
@click.option(
    "--calibration", type=PATH, help="Source sentences for int8 calibration.  [default: those of the golden data]"
)
@click.option("--profiles", type=PATH, help="TOML file of the batch sizes and lengths to build engines for.")
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    help="Op that a plugin may compute, where the device measures that it is faster; repeatable.",
)
@click.option("--build", is_flag=True, help="Build the engines on this machine, and verify them.")
@click.option("--max-build-minutes", type=float, help="Time limit per engine build, in minutes.")
@click.option(
    "--force",
    is_flag=True,
    help="Replace optimized graphs in BUNDLE. Their build settings stay, unless --profiles replaces them.",
)
@threads_option
@cache_dir_option
@click.pass_context
def optimize(ctx: click.Context, /, **arguments: Any) -> None:
    """Optimize the graphs of BUNDLE for one target.

    The graphs are verified, and then added to BUNDLE. Graphs that BUNDLE already contains are replaced only with
    --force. With --build alone their engines are built, and --profiles and --max-build-minutes change the build
    settings that BUNDLE stores.
    """
    ctx.exit(resolve("verb", VERBS, "optimize")(log=click.echo, **arguments))


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool) -> None:
    """Check this machine, and print a repair command for each fault.

    Exit code 0: no fault. 3: there is a fault.
    """
    report = resolve("verb", VERBS, "doctor")()
    echo_result(report, as_json)
    ctx.exit(report.exit_code)


@click.group()
def cache() -> None:
    """List or delete the engines built on this machine."""


@cache.command("list")
@cache_dir_option
def cache_list(cache_dir: Path | None) -> None:
    """List the engines: graph, versions, GPU, size, last use."""
    click.echo(resolve("verb", VERBS, "cache list")(cache_dir))


@cache.command("clear", short_help="Delete all engines that are not being built.")
@cache_dir_option
def cache_clear(cache_dir: Path | None) -> None:
    """Delete all engines that are not being built, and leftovers of ended builds."""
    click.echo(resolve("verb", VERBS, "cache clear")(cache_dir))


@click.command()
@click.option("--out", type=PATH, default=Path("edge-attn-demo"), show_default=True, help="Output folder.")
@runtime_options
@click.pass_context
def demo(ctx: click.Context, /, out: Path, runtime: str, options: RuntimeOptions) -> None:
    """Export, verify and run the embedded English-French model."""
    ctx.exit(resolve("verb", VERBS, "demo")(out, runtime, options, click.echo))
