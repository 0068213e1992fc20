"""Optimization of a bundle's graphs for a target."""

from edge_attn.versions import require

require("onnx")
