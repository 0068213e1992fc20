"""Configuration of engine builds."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_attn.config.validation import at_least
from edge_attn.errors import ConfigError
from edge_attn.runtimes.trt.profiles import Buckets, at_most

MIB = 1024**2
MAX_MIB = 2**40 - 1
"""Maximum of a size in MB, so that its bytes fit into 64 bits."""


@dataclass(frozen=True)
class BuildConfig:
    """Options of an engine build. A TOML file contains these keys, and `buckets` as a table."""

    buckets: Buckets = field(default_factory=Buckets)
    workspace_mb: int = 1024
    """Maximum scratch memory of a layer on the device, in MB, while it is measured and while it runs."""
    max_build_minutes: float = 60.0
    """Time limit of a build, in minutes."""
    optimization_level: int = 3
    """TensorRT's builder optimization level, 0 to 5. Higher levels measure more kernels."""
    tf32: bool = False
    """Use TF32 for fp32 matrix products: 10 bits of mantissa, faster from Ampere on, and less exact."""
    cache_mb: int = 4096
    """Size limit of the engine cache, in MB. The least recently used engines are removed first."""

    def __post_init__(self) -> None:
        for name in ("workspace_mb", "cache_mb"):
            at_least(name, getattr(self, name), 1)
            at_most(name, getattr(self, name), MAX_MIB)
        if not 0 < self.max_build_minutes < float("inf"):  # False for nan
            raise ConfigError(f"max_build_minutes must be a number more than 0, got {self.max_build_minutes}")
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"optimization_level must be between 0 and 5, got {self.optimization_level}")

    def settings(self) -> str:
        """Return the options that change the engine, as part of its key."""
        return f"workspace {self.workspace_mb} MB, level {self.optimization_level}" + (", TF32" if self.tf32 else "")
