"""Files and manifest of the smallest bundle."""

from __future__ import annotations

from edge_attn.bundle.manifest import FORMAT, Manifest
from edge_attn.config.training import TextConfig
from edge_attn.spec import GraphSpec, TensorSpec
from edge_attn.text.pipeline import Text

GRAPH = GraphSpec(
    "graphs/encoder.onnx",
    (TensorSpec("source", "int64", ("batch", "src")),),
    (TensorSpec("memory.keys", "float32", ("batch", "src", 8)),),
)
FILES = {
    **Text.train(TextConfig("words", 9, 9), [("a b", "c d")]).files(),
    "graphs/encoder.onnx": b"a graph " * 40,
    "MODEL_CARD.md": "# Modèle\n".encode(),
}


def make_manifest(**options) -> Manifest:
    """Build the manifest, with `options` in place of its defaults."""
    options = {
        "format": FORMAT,
        "family": "seq2seq",
        "task": "translation",
        "precision": "fp32",
        "max_source": 9,
        **options,
    }
    return Manifest(**{"graphs": {"encoder": GRAPH}, **options})
