"""`edge-attn demo`: export, verification, translation and alignments of the embedded model."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable
from pathlib import Path

import edge_attn
from edge_attn.bundle.bundle import Bundle
from edge_attn.bundle.writer import write_bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import InputError, UsageError
from edge_attn.registry import RUNTIMES, VERBS, resolve
from edge_attn.runtimes.commands.plots import alignment_svg, write_svg
from edge_attn.runtimes.tasks.translation import Translator
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

    Where export is not possible (no torch, or no checkpoint in a wheel), it copies the embedded bundle instead.

    Args:
        out: output folder for the bundle and the plot.
        runtime: `ort-cpu` or `ort-cuda`.
        options: options of the runtime, with precision fp32.
        log: function that prints a message.

    Raises:
        UsageError: another runtime or precision.
        InputError: `out` cannot be written.
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
    missing = [f"{name} is not installed" for name in EXPORT_PACKAGES if importlib.util.find_spec(name) is None]
    if not CHECKPOINT.is_dir():
        missing.append("the wheel does not contain the checkpoint")
    if missing:
        log(f"{missing[0]}, so nothing is exported; copying the embedded bundle {BUNDLE} to {bundle}")
        embedded = Bundle.open(BUNDLE)
        write_bundle(bundle, embedded.manifest, embedded.files(), force=True)
    else:
        log(f"exporting {CHECKPOINT} to {bundle}")
        resolve("verb", VERBS, "export")(CHECKPOINT, bundle, force=True)
    report = verify(bundle, runtime, options=options)
    log(str(report))
    with Translator.open(bundle, runtime, options) as translator:
        translations = translator.translate(SENTENCES)
    for sentence, translation in zip(SENTENCES, translations, strict=True):
        log(f"{sentence}\n  -> {translation.text}  ({translation.score:.3f})")
    plot = out / "alignments.svg"
    write_svg(plot, alignment_svg(translations))
    log(f"alignments are plotted in {plot}")
    log(f'next: edge-attn translate {shlex.quote(str(bundle))} "I am cold."')
    return report.exit_code
