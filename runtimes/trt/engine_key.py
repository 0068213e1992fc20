"""Key of an engine in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

PARTS = {
    "graph": "the graph",
    "runtime": "TensorRT",
    "gpu": "the GPU",
    "compute_capability": "the compute capability",
    "precision": "the precision",
    "profiles": "the profiles",
    "plugins": "the plugins",
    "settings": "the build settings",
}
"""The parts of a key, and their names in messages."""
SHORT_PARTS = ("runtime", "gpu", "compute_capability", "precision")
"""Parts whose old and new value a message contains."""


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on, in readable form."""

    label: str
    """Bundle, graph and target, for messages. Not part of the hash."""
    graph: str
    """sha256 of the ONNX file."""
    runtime: str
    """Name and version, as in `tensorrt 10.3.0`."""
    gpu: str
    compute_capability: str
    precision: str
    profiles: str
    plugins: str
    """Each plugin with the hash of its kernel, or `none`."""
    settings: str

    def parts(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in PARTS}

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.parts(), sort_keys=True).encode()).hexdigest()[:32]

    def changes(self, parts: Mapping[str, str]) -> list[str]:
        """Return one phrase for each part that differs from `parts`, those of another engine."""
        return [
            f"{PARTS[name]} was {parts.get(name)}, is {value}" if name in SHORT_PARTS else f"{PARTS[name]} changed"
            for name, value in self.parts().items()
            if parts.get(name) != value
        ]
