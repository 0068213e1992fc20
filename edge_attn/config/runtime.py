"""Options of runtimes. Standard library only: the command line loads it to answer --help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_attn.errors import UsageError


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime is opened; the same for every verb that runs a bundle."""

    threads: int | None = None
    """Of the CPU; the runtime's own choice if None."""
    precision: str = "fp32"
    """fp32, fp16 or int8: the graphs that run, the portable ones or those of targets/<target>-<precision>."""
    allow_fallback: bool = False
    """ort-cuda: where CUDA is missing the CPU runs, and the provider's name says so."""
    cache_dir: Path | None = None
    """Of engines; None: edge-attn in the user's cache folder."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, got {self.threads}")
