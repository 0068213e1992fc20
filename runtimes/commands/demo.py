"""`edge-attn demo`: the whole road on the embedded model, in one command."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import edge_attn
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.errors import InputError, UsageError
from edge_attn.registry import RUNTIMES, VERBS, resolve
from edge_attn.runtimes.commands.plots import alignment_svg, write
from edge_attn.runtimes.tasks.translation import Translator
from edge_attn.runtimes.verification.verify import verify

PRETRAINED = Path(edge_attn.__file__).parent / "pretrained"
CHECKPOINT = PRETRAINED / "en-fr"
READY = PRETRAINED / "en-fr.zip"
NEEDED = ("torch", "onnx", "onnxscript", "safetensors")
SENTENCES = (
    "I'm not sure what you mean.",
    "She bought a new car last week.",
    "Where did you learn to speak French?",
    "If it rains tomorrow, we will stay at home.",
    "My brother wants to become a doctor because he likes helping people.",
)


def demo(out: Path, runtime: str, options: RuntimeOptions, say: Callable[[str], object]) -> int:
    """Exports the embedded checkpoint (in a checkout with torch; else takes the ready bundle), verifies the bundle,
    translates SENTENCES and draws their alignments; gives the exit code of the verification."""
    if runtime not in RUNTIMES:
        resolve("runtime", RUNTIMES, runtime)
    if runtime not in ("ort-cpu", "ort-cuda") or options.precision != "fp32":
        raise UsageError(
            f"demo runs what it exports, which is for ort-cpu and ort-cuda in fp32, got {runtime} in "
            f"{options.precision}; make the rest of {out / 'en-fr'} with edge-attn optimize afterwards"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from error
    missing = [f"{name} is not installed" for name in NEEDED if importlib.util.find_spec(name) is None]
    if not CHECKPOINT.is_dir():
        missing.append("the wheel does not contain the checkpoint")
    if missing:
        bundle = READY
        say(f"{missing[0]}, so nothing is exported; using the ready bundle {bundle}")
    else:
        bundle = out / "en-fr"
        say(f"exporting {CHECKPOINT} to {bundle}")
        resolve("verb", VERBS, "export")(CHECKPOINT, bundle, force=True)
    report = verify(bundle, runtime, options=options)
    say(str(report))
    translator = Translator.open(bundle, runtime, options)
    translations = translator.translate(SENTENCES)
    for sentence, translation in zip(SENTENCES, translations, strict=True):
        say(f"{sentence}\n  -> {translation.text}  ({translation.score:.3f})")
    picture = out / "alignments.svg"
    write(picture, alignment_svg(translations))
    say(f"alignments drawn in {picture}")
    return report.exit_code
