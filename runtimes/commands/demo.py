"""`edge-attn demo`: export, verification, translation and alignments of the embedded model."""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import edge_attn
from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import write_bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import InputError, UsageError
from edge_attn.parity.tolerances import LEVELS
from edge_attn.registry import RUNTIMES, VERBS, resolve
from edge_attn.runtimes.commands.inspect import inspect
from edge_attn.runtimes.commands.plots import alignment_svg, write_svg
from edge_attn.runtimes.tasks.translation import Translator
from edge_attn.runtimes.verification.report import Report
from edge_attn.runtimes.verification.verify import verify

PRETRAINED = Path(edge_attn.__file__).parent / "pretrained"
CHECKPOINT = PRETRAINED / "en-fr"
BUNDLE = PRETRAINED / "en-fr.zip"
"""Exported bundle of CHECKPOINT, for machines without torch."""
EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "safetensors")
SENTENCES = (
    "I'm not sure what you mean.",
    "She bought a new car last week.",
    "Where did you learn to speak French?",
    "If it rains tomorrow, we will stay at home.",
    "My brother wants to become a doctor because he likes helping people.",
)


def demo(out: Path, runtime: str, options: RuntimeOptions, log: Callable[[str], object]) -> int:
    """Run the demo, and return the exit code of its verification.

    The bundle is `out`/en-fr afterwards: exported, or copied where export is not possible (no torch, or a wheel without
    the checkpoint). A bundle that an earlier demo wrote there is used as it is.

    Args:
        out: output folder for the bundle and the picture.
        runtime: `ort-cpu` or `ort-cuda`.
        options: options of the runtime, with precision fp32.
        log: function that prints a message.

    Raises:
        UsageError: another runtime or precision.
        InputError: `out` cannot be written, or has something else at en-fr.
    """
    if runtime not in RUNTIMES:
        resolve("runtime", RUNTIMES, runtime)  # raises the error that lists the runtimes
    if runtime not in ("ort-cpu", "ort-cuda") or options.precision != "fp32":
        raise UsageError(
            f"demo runs on ort-cpu and ort-cuda in fp32, got {runtime} in {options.precision}; "
            f"for another target run demo first, then: edge-attn optimize {out / 'en-fr'}"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from error
    bundle = out / "en-fr"
    embedded = inspect(BUNDLE)
    log(f"{embedded.content['model']['title'] or 'translation'}: {embedded.architecture()}fp32")
    _provide_bundle(bundle, log)
    report = verify(bundle, runtime, options=options)
    _log_stage(log, "2 verify", report.seconds, _verdict_lines(report))
    start = time.monotonic()
    with Translator.open(bundle, runtime, options) as translator:
        translations = translator.translate(SENTENCES)
    width = max(map(len, SENTENCES))
    pairs = zip(SENTENCES, translations, strict=True)
    lines = [f"{sentence:<{width}}  {translation.text}" for sentence, translation in pairs]
    _log_stage(log, "3 translate", time.monotonic() - start, lines)
    plot = out / "alignments.svg"
    write_svg(plot, alignment_svg(translations))
    _log_stage(log, "4 picture", None, [str(plot)])
    log(f'Next: edge-attn translate {shlex.quote(str(bundle))} "I am cold."')
    return report.exit_code


def _provide_bundle(bundle: Path, log: Callable[[str], object]) -> None:
    """Export the embedded checkpoint to `bundle`, or copy the embedded bundle there, unless an earlier demo did.

    Args:
        bundle: the bundle of the demo.
        log: function that prints a message.

    Raises:
        InputError: `bundle` exists and is something else, or cannot be written.
    """
    start = time.monotonic()
    missing = [f"{name} is not installed" for name in EXPORT_PACKAGES if importlib.util.find_spec(name) is None]
    if not CHECKPOINT.is_dir():
        missing.append("the wheel does not contain the checkpoint")
    if bundle.exists():
        if not _is_of_a_demo(bundle):
            raise InputError(f"{bundle} exists and is not the bundle of this demo; choose another --out, or remove it")
        _log_stage(log, "1 export", None, [f"{bundle} of an earlier demo is used as it is; remove it to export again"])
        return
    if missing:
        embedded = Bundle.open(BUNDLE)
        write_bundle(bundle, embedded.manifest, embedded.files())
        name, notes = "1 copy", [f"{missing[0]}, so nothing is exported: this is a copy of the embedded bundle"]
    else:
        resolve("verb", VERBS, "export")(CHECKPOINT, bundle)
        name, notes = "1 export", []
    written = Bundle.open(bundle)
    size = f"{len(written.manifest.graphs)} graphs, {written.size() / 1e6:.1f} MB -> {bundle}"
    _log_stage(log, name, time.monotonic() - start, [size, *notes])


def _is_of_a_demo(path: Path) -> bool:
    """Return whether `path` is a bundle of the embedded model."""
    try:
        provenance = Bundle.open(path).manifest.provenance
    except InputError:
        return False
    checkpoints = [Bundle.open(BUNDLE).manifest.provenance.get("checkpoint_sha256")]
    if CHECKPOINT.is_dir():
        checkpoints.append(hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest())
    return provenance.get("checkpoint_sha256") in checkpoints


def _verdict_lines(report: Report) -> list[str]:
    """Return the verdict with the figures that a first reader asks for, or the whole report if parity does not hold."""
    if report.verdict != "holds":
        return str(report).splitlines()
    levels = ", ".join(f"{LEVELS[level.name].partition(':')[0]} {level.status}" for level in report.levels)
    differing = sum(len(level.mismatches) for level in report.levels)
    tokens = f"{differing} tokens differ within the noise" if differing else "every token equals PyTorch's"
    search = report.level("L3").measurements
    figures = [item for item in search if item.name == "log_prob"]
    figure = "".join(f"; log-probabilities within {item.value:.1e} (allowed {item.bound:.0e})" for item in figures)
    return [f"{report.sentences} sentences: {levels}", f"{tokens}{figure}", f"parity {report.verdict}"]


def _log_stage(log: Callable[[str], object], name: str, seconds: float | None, lines: Sequence[str]) -> None:
    duration = "" if seconds is None else f"{seconds:.0f} s"
    for number, line in enumerate(lines):
        log(f"{name if not number else '':<11} {duration if not number else '':>5}   {line}".rstrip())
