"""Options of runtimes. Standard library only, because `--help` loads this file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_attn.errors import UsageError


@dataclass(frozen=True)
class RuntimeOptions:
    """Options with which a runtime is opened, common to every command that executes a bundle."""

    threads: int | None = None
    """CPU threads. None lets the runtime choose."""
    precision: str = "fp32"
    """Precision of the graphs, fp32, fp16 or int8: the portable graphs or those of targets/<target>-<precision>."""
    allow_fallback: bool = False
    """Run ort-cuda on the CPU if CUDA is missing. Reports name the provider that was used."""
    cache_dir: Path | None = None
    """Engine cache folder. None: edge-attn in the user's cache folder."""
    max_run_seconds: float = 20.0
    """Maximum time of one run of a graph in ONNX Runtime: a graph that takes longer is stopped, as one with an endless
    loop."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"`threads` must be at least 1, got {self.threads}")
        if not self.max_run_seconds > 0:
            raise UsageError(f"`max_run_seconds` must be positive, got {self.max_run_seconds}")


DEFAULT = RuntimeOptions()
"""Options that leave every choice to the runtime."""
