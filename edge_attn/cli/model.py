"""Commands that create a model: train, export."""

from __future__ import annotations

from pathlib import Path

import click

from edge_attn.cli.options import PATH, Choice, override_option
from edge_attn.registry import VERBS, import_object, resolve


@click.command()
@click.argument("config", type=PATH)
@click.option("--out", required=True, type=PATH, help="Checkpoint folder; an interrupted run is resumed.")
@click.option("--data", type=PATH, help="Folder of the training data.  [default: the one in CONFIG]")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Number of torch threads. A fixed number makes the weights reproducible.",
)
@click.option(
    "--init",
    type=PATH,
    help="Checkpoint whose weights a new run begins with (fine-tuning). Vocabularies may differ: entries of both "
    "keep their rows.",
)
@click.option(
    "--device",
    type=Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device; auto is a CUDA GPU if there is one. torchrun gives each process its own GPU.",
)
@click.option(
    "--set",
    "settings",
    metavar="TABLE.KEY=VALUE",
    multiple=True,
    help="Replace a value of CONFIG, as training.updates=40; repeatable.",
)
@click.option("--tensorboard", type=PATH, help="Folder for TensorBoard's event files.")
def train(
    config: Path,
    out: Path,
    data: Path | None,
    threads: int | None,
    init: Path | None,
    device: str,
    settings: tuple[str, ...],
    tensorboard: Path | None,
) -> None:
    """Train a model from the TOML file CONFIG (also under torchrun).

    Ctrl-C and SIGTERM save the state; the same command resumes the run.
    """
    import_object("edge_attn.training.inputs:check_inputs")(config, out, data, init, settings)  # before torch
    resolve("verb", VERBS, "train")(config, out, data, threads, init, device, settings, tensorboard)


@click.command()
@click.argument("kind", type=Choice(["dates", "translation"]))
@click.option("--out", type=PATH, help="File to write.  [default: standard output]")
def init(kind: str, out: Path | None) -> None:
    """Write a commented training configuration.

    dates is a model of characters that trains in minutes on one core, translation the embedded model's configuration.
    """
    click.echo(resolve("verb", VERBS, "init")(kind, out), nl=out is not None)


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--out", required=True, type=PATH, help="Bundle to write: a folder, or a zip if it ends in .zip.")
@click.option(
    "--candidates",
    type=int,
    default=16,
    show_default=True,
    help="Number of best tokens that a step returns; the beam size can be at most one less.",
)
@click.option(
    "-i",
    "--input",
    "sentences",
    type=PATH,
    help="Source sentences for the golden data.  [default: those in CHECKPOINT]",
)
@override_option
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option(
    "--inline",
    is_flag=True,
    help="Write standard ops in place of functions and fp32 weights, for other ONNX runtimes and quantizers.",
)
def export(
    checkpoint: Path,
    out: Path,
    candidates: int,
    sentences: Path | None,
    overrides: dict[str, float],
    force: bool,
    inline: bool,
) -> None:
    """Export CHECKPOINT to a verified bundle that runs without torch."""
    import_object("edge_attn.parity.tolerances:bounds")("fp32", {}, overrides)  # raises for a name that is not a bound
    import_object("edge_attn.bundle.export_inputs:check_inputs")(checkpoint, out, candidates, sentences, force)
    if force and (dropped := import_object("edge_attn.bundle.writer:targets_of")(out)):
        again = f"afterwards: edge-attn optimize {out} --target ..."
        click.echo(f"warning: --force drops the optimized graphs of {out}: {', '.join(dropped)}; {again}", err=True)
    manifest = resolve("verb", VERBS, "export")(checkpoint, out, candidates, sentences, force, overrides, inline)
    levels = ", ".join(f"{level} {status}" for level, status in manifest.verification["levels"].items())
    for name, value in manifest.verification.get("overrides", {}).items():
        click.echo(f"override: {name} = {value:g}")
    click.echo(f"{out}: {len(manifest.graphs)} graphs, {levels} on {manifest.verification['provider']}")
