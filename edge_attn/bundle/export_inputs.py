"""Checks of what `edge-attn export` receives. They need no torch, so a wrong path is refused in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_attn.bundle.writer import check_output
from edge_attn.config.checkpoint import MODEL, load_config
from edge_attn.errors import CheckpointError, InputError
from edge_attn.text.corpus import read_sentences

OTHER_SUFFIXES = (
    *(".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".onnx", ".ort", ".engine", ".plan"),
    *(".pt", ".pth", ".safetensors", ".keras", ".h5", ".npz", ".json", ".toml", ".txt"),
)
"""Suffixes of files that a bundle is not; a folder of such a name would surprise."""


def check_inputs(
    checkpoint: Path, out: Path, candidates: int, sentences: Path | None, force: bool
) -> Sequence[str] | None:
    """Check the inputs of an export, and return the lines of `sentences`.

    Args:
        checkpoint: folder of the trained model.
        out: bundle to write.
        candidates: best tokens that a step returns.
        sentences: file of source sentences; None for those of the checkpoint.
        force: replace a bundle at `out`.

    Raises:
        CheckpointError: `checkpoint` is not a checkpoint, or has no weights yet.
        InputError: `out` cannot be written, `candidates` is too small, or `sentences` cannot be read.
    """
    load_config(checkpoint)
    if not (checkpoint / MODEL).is_file():
        raise CheckpointError(f"{checkpoint / MODEL} cannot be read: No such file or directory")
    if candidates < 2:
        raise InputError(f"`candidates` must be at least 2 (a beam of one needs them), got {candidates}")
    if out.suffix.lower() in OTHER_SUFFIXES and not out.exists():
        raise InputError(f"a bundle is a folder or a .zip, got `out` {out}; choose a name without {out.suffix}")
    check_output(out, force)
    return None if sentences is None else read_sentences(sentences)
