"""Models in torch."""

from edge_attn.versions import require

require("torch", "safetensors")
